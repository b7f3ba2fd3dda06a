"""Redis as the leases know it: their three scripts over keys that run out, on a clock that is given.

tests/integration/test_leases.py holds its answers against those of a real Redis.
"""

from beat import leases


class RedisModel:
    """`now` is Redis's own clock, in seconds."""

    def __init__(self, now):
        self.now = now
        self.strings = {}
        """A value and until when it is there, in milliseconds."""
        self.scores = {}
        """The live beats and when each was heard of, the oldest first."""
        self.scripts = {leases.RENEW: self._renew, leases.TAKE: self._take, leases.RELEASE: self._release}

    def execute(self, source, keys, args):
        return self.scripts[source](self._milliseconds(), keys, [str(arg) for arg in args])

    def get(self, key):
        return self._get(self._milliseconds(), key)

    def _get(self, now, key):
        value, until = self.strings.get(key, (None, 0))
        return value if now < until else None

    def _renew(self, now, keys, args):
        name, ttl, heard, *tokens = args
        self.scores.pop(name, None)
        self.scores[name] = now
        while self.scores[oldest := next(iter(self.scores))] <= now - int(heard):
            del self.scores[oldest]
        renewed = [int(self._get(now, key) == token) for key, token in zip(keys[1:], tokens, strict=True)]
        self.strings |= {
            key: (token, now + int(ttl)) for key, token, ours in zip(keys[1:], tokens, renewed, strict=True) if ours
        }
        return [list(self.scores), renewed]

    def _take(self, now, keys, args):
        name, ttl, room, token = args
        taken = []
        for index, key in enumerate(keys):
            if len(taken) >= int(room):
                break
            holder = self._get(now, key)
            if holder is None or holder.startswith(f"{name}:"):
                self.strings[key] = (token, now + int(ttl))
                taken.append(index)
        return taken

    def _release(self, now, keys, args):
        self.scores.pop(args[0], None)
        mine = [key for key, token in zip(keys[1:], args[1:], strict=True) if self._get(now, key) == token]
        for key in mine:
            del self.strings[key]
        return len(mine)

    def _milliseconds(self):
        return int(self.now() * 1000)
