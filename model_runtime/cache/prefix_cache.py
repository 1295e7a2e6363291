"""Which token ids the pages hold: a radix tree in page units, so that no prefix is computed twice.

    root ─ [64 ids] ─ [64 ids] ─ [64 ids]
                    └ [64 ids] ─ [22 ids]      a tail: a page that is not full, always a leaf

A prompt matches whole pages along one path, then part of one more page: the sequence shares that page too and copies it
before writing. Token ids decide alone; equal ids mean equal content, whatever sequence computed them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

from v32.model_runtime.cache.block_table import BlockTable
from v32.model_runtime.cache.pages import PAGE_SIZE, PagePool


class PrefixCache:
    """`match` a prompt, `insert` what was computed, `evict` what was not used for longest."""

    def __init__(self, pool: PagePool) -> None:
        self.pool = pool
        self._root = _Node((), -1, None)
        # Least recently used first. A node always stands before its parent, so the first one is a leaf.
        self._order: OrderedDict[_Node, None] = OrderedDict()

    def __len__(self) -> int:
        """Pages held."""
        return len(self._order)

    def pages(self) -> Iterator[int]:
        return (node.page for node in self._order)

    def match(self, token_ids: Sequence[int]) -> BlockTable:
        """A table over the longest cached prefix; the last token is left out, since its logits are wanted."""
        path, length = self._find(token_ids)
        self._touch(path)
        return BlockTable.share(self.pool, [node.page for node in path], length)

    def match_length(self, token_ids: Sequence[int]) -> int:
        """Length of what `match` would find; nothing is touched."""
        return self._find(token_ids)[1]

    def insert(self, token_ids: Sequence[int], table: BlockTable, *, with_tail: bool = True) -> None:
        """Publish what `table` holds of `token_ids`: its full pages and, `with_tail`, the one that is not full."""
        node, path = self._root, []
        for index, page in enumerate(table.pages):
            start = index * PAGE_SIZE
            ids = tuple(token_ids[start : min(start + PAGE_SIZE, table.length)])
            if not ids or (len(ids) < PAGE_SIZE and not with_tail):
                break
            node = self._child(node, ids, page)
            path.append(node)
            if len(node.token_ids) < PAGE_SIZE:
                break
        self._touch(path)

    def evict(self, num_pages: int) -> int:
        """Free up to `num_pages` pages that only the cache holds, least recently used first; how many it were."""
        freed = 0
        for node in list(self._order):  # children first, so that a parent is a leaf when its turn comes
            if freed == num_pages:
                break
            if not node.children and self.pool.num_holders(node.page) == 1:
                self._remove(node)
                freed += 1
        return freed

    @property
    def num_evictable(self) -> int:
        """Pages that only the cache holds; an upper bound of what `evict` can free."""
        return sum(self.pool.num_holders(node.page) == 1 for node in self._order)

    def clear(self) -> None:
        """Forget everything; pages that sequences use stay theirs."""
        for node in self._order:
            self.pool.release(node.page)
        self._order.clear()
        self._root = _Node((), -1, None)

    def check_integrity(self) -> None:
        """Raise AssertionError if the tree and the order of use do not agree."""
        seen: set[_Node] = set()
        for node in self._order:
            assert all(child in seen for child in node.all_children()), "a node stands before its child"
            assert node.parent is not None
            assert node in node.parent.children.get(node.token_ids[0], ()), "a node is not its parent's child"
            assert not node.children or len(node.token_ids) == PAGE_SIZE, "a page that is not full has successors"
            seen.add(node)
        assert set(self._root.all_children()) <= seen, "a node is missing from the order of use"

    def _find(self, token_ids: Sequence[int]) -> tuple[list[_Node], int]:
        """The path of nodes that hold the longest prefix, and its length."""
        limit = len(token_ids) - 1
        node, path, length = self._root, [], 0
        while length < limit:
            child, common = node.best_child(tuple(token_ids[length : min(length + PAGE_SIZE, limit)]))
            if child is None:
                break
            path.append(child)
            length += common
            if common < PAGE_SIZE:
                break
            node = child
        return path, length

    def _child(self, node: _Node, ids: tuple[int, ...], page: int) -> _Node:
        """The child that holds `ids`: the one there is, or a new one that replaces a tail which `ids` continue."""
        siblings = node.children.setdefault(ids[0], [])
        for sibling in siblings:
            if sibling.token_ids[: len(ids)] == ids:
                return sibling
        for sibling in [s for s in siblings if ids[: len(s.token_ids)] == s.token_ids]:
            self._remove(sibling)
        child = _Node(ids, page, node)
        node.children.setdefault(ids[0], []).append(child)
        self.pool.retain(page)
        self._order[child] = None
        return child

    def _touch(self, path: list[_Node]) -> None:
        for node in reversed(path):
            self._order.move_to_end(node)

    def _remove(self, node: _Node) -> None:
        assert node.parent is not None
        siblings = node.parent.children[node.token_ids[0]]
        siblings.remove(node)
        if not siblings:
            del node.parent.children[node.token_ids[0]]
        del self._order[node]
        self.pool.release(node.page)


class _Node:
    """One page: up to 64 token ids and what may follow them, by first id."""

    __slots__ = ("children", "page", "parent", "token_ids")

    def __init__(self, token_ids: tuple[int, ...], page: int, parent: _Node | None) -> None:
        self.token_ids = token_ids
        self.page = page
        self.parent = parent
        self.children: dict[int, list[_Node]] = {}

    def all_children(self) -> Iterator[_Node]:
        return (child for children in self.children.values() for child in children)

    def best_child(self, ids: tuple[int, ...]) -> tuple[_Node | None, int]:
        """The child that shares the most first ids with `ids`, and how many."""
        best, most = None, 0
        for child in self.children.get(ids[0], ()):
            common = _common_prefix(child.token_ids, ids)
            if common > most:
                best, most = child, common
        return best, most


def _common_prefix(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    if a == b:
        return len(a)
    for index, (x, y) in enumerate(zip(a, b)):
        if x != y:
            return index
    return min(len(a), len(b))
