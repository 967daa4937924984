"""The journal and the topics: one ``port``, over Apache Kafka (``kafka``) and one SQLite file (``embedded``)."""
