"""A prefix cache: blocks of prompts stay in free KV until the room is needed."""

from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.instance import Instance
from slo_opt.simulate.life import Life


class PrefixCache:
    """Which leading blocks of first prompts one replica holds.

    A block can be found from the end of the batch that computed its last token. When the last job that holds it leaves
    or is preempted, it stays in free KV; the least recently freed goes first, of one prompt the last block. A job that
    begins takes what it finds, once: after a preemption it computes all its tokens. Blocks are copied, not shared: two
    running jobs with one prefix take the KV of two.

    Parameters
    ----------
    instance : Instance
        Whose requests say what their prompts begin with.

    Attributes
    ----------
    hits : dict of int to int
        Tokens found, by request that began with some.

    Raises
    ------
    InvalidInputError
        No request says what its prompt begins with, or blocks differ in size or are no multiple of the engine's.
    """

    def __init__(self, instance: Instance) -> None:
        self._ids = [() if request.prefix is None else request.prefix.blocks for request in instance.requests]
        sizes = {request.prefix.block_tokens for request in instance.requests if request.prefix is not None}
        block = instance.engine.block_size_tokens
        if not sizes:
            raise InvalidInputError(
                f"{instance.name}: no request says what its prompt begins with, so a prefix cache finds nothing; leave "
                "it off, or take a mooncake trace, or give requests a prefix"
            )
        if len(sizes) > 1 or any(size % block for size in sizes):
            raise InvalidInputError(
                f"{instance.name}: prefix blocks of {', '.join(map(str, sorted(sizes)))} tokens; a prefix cache needs "
                f"one size, a multiple of the {block} tokens of the engine's KV blocks"
            )
        self._tokens = sizes.pop()
        self._kv_blocks = self._tokens // block
        self._free: dict[int, None] = {}  # the first goes first
        self._holders: dict[int, int] = {}
        self._held: dict[int, int] = {}  # by request, leading blocks that it holds
        self.hits: dict[int, int] = {}

    def look(self, life: Life) -> None:
        """Let a job that has not begun know what it would find."""
        ids = self._ids[life.index]
        if not ids or life.round or life.preemptions:
            return
        found, most = 0, (life.known_tokens - 1) // self._tokens  # one token at least is computed
        for block in ids[:most]:
            if block not in self._holders and block not in self._free:
                break
            found += 1
        life.cached_tokens = life.computed_tokens = found * self._tokens
        life.prompt_tokens = life.known_tokens - life.cached_tokens

    def begin(self, life: Life) -> None:
        """Take what a job found."""
        if self._ids[life.index] and not life.round and life.computed_tokens:
            self.hits[life.index] = life.computed_tokens
            self.store(life)

    def store(self, life: Life) -> None:
        """Hold the whole blocks that a job has computed."""
        ids = self._ids[life.index]
        if not ids or life.round:
            return
        held, now = self._held.get(life.index, 0), min(len(ids), life.computed_tokens // self._tokens)
        for block in ids[held:now]:
            self._free.pop(block, None)
            self._holders[block] = self._holders.get(block, 0) + 1
        if now > held:
            self._held[life.index] = now

    def release(self, life: Life) -> None:
        """Leave the blocks of a job in free KV."""
        held = self._held.pop(life.index, 0)
        for block in reversed(self._ids[life.index][:held]):
            self._holders[block] -= 1
            if not self._holders[block]:
                del self._holders[block]
                self._free[block] = None

    def shrink(self, free_kv_blocks: int) -> None:
        """Forget what no longer has room in free KV."""
        for _ in range(len(self._free) - free_kv_blocks // self._kv_blocks):
            del self._free[next(iter(self._free))]
