"""The journal and the topics: one port (``port``), over Apache Kafka (``kafka``) and over one SQLite file (``embedded``)."""
