"""The durable buffer: what devices published waits here until the cloud has it (D1).

``port`` is the contract, ``sqlite`` its implementation on disk, ``testing`` a second one in memory.
"""
