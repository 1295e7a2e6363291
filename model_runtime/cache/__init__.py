"""The KV cache: pages of 64 tokens, the block tables that share them, the prefix cache that finds them again."""

from v32.model_runtime.cache.block_table import BlockTable
from v32.model_runtime.cache.disk import read_kv, write_kv
from v32.model_runtime.cache.pages import PAGE_SIZE, KVLayout, LayerCache, PagePool
from v32.model_runtime.cache.prefix_cache import PrefixCache

__all__ = ["PAGE_SIZE", "BlockTable", "KVLayout", "LayerCache", "PagePool", "PrefixCache", "read_kv", "write_kv"]
