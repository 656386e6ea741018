"""Episode stores: a converted dataset as a folder of standard files.

``reader.EpisodeStore`` reads a store and ``writer.convert_to_store`` makes one. Both stand on

- ``format``: names of files, columns and tensors (docs/data.md describes the layout for other programs),
- ``metadata``: the description of the dataset in the index,
- ``index``: the rows of ``index.parquet``, one an episode, checked and in memory,
- ``byte_ranges``: ranges of bytes of the shards, by memory map or from a ``remote_folder``,
- ``remote_folder``: folders that fsspec can reach, with a bounded cache on the local disk,
- ``shard``: the writer of one shard.
"""
