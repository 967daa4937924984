"""From the buffer to the cloud: ``forwarder`` empties lanes into frames and settles what the cloud has journaled.

``turns`` says whose turn it is, ``bodies`` and ``dictionaries`` how frames are encoded, ``window`` what is in flight,
``pace`` how much the link takes.
"""
