"""How far it goes: the data plan (``plan``, kept by ``meter``), how long the buffer lasts (``outlook``, ``gauge``)."""
