#!/usr/bin/env python3
"""Verify a bundle of evidence about restore drills, offline, with Python alone.

    python3 verify.py FILE --key VKEY [--key VKEY ...] [--known FILE ...]
                      [--witness VKEY ...] [--gone NODE ...] [--from DAY] [--to DAY] [--output text|json]

FILE is what `holdfast evidence export` wrote. VKEY is the verifier key of a node
that writes a ledger, had from somebody you trust, never from the bundle. --known
names a checkpoint that you kept, or an earlier bundle: the ledgers must still
contain it. --witness is the key of a witness that must have cosigned the newest
checkpoints, --gone a node that was given up and may be silent. --from and --to are the period that you asked for; without them the
bundle's own is used.

Exit codes: 0 everything holds, 2 usage, 4 something does not hold.

It shares no code with the program that wrote the bundle. It needs Python 3.9 or
newer and nothing else; schedules with a time zone need its data base of zones
(the system's, or the package tzdata), and without one they are not assessed.
"""

import argparse
import base64
import binascii
import datetime
import hashlib
import io
import json
import re
import sys
import tarfile

FORMAT = "holdfast-evidence/1"
SCHEMA = "holdfast-entry/1"
WIDTH = 256  # entries in a tile, C2SP tlog-tiles
SECOND = 1_000_000_000
CLOCK_SLACK = 600 * SECOND
END_SLACK = 3600 * SECOND
MAX_OBJECT = 64 << 20
MAX_SLOTS = 100_000
MOST_OWED = 31 * 86400 * SECOND
NEVER = -62135596800 * SECOND  # what the other verifier takes a missing time for
MAX_OBJECTS = 1 << 20
OUTCOMES = ["pass", "pass_with_gaps", "fail", "inconclusive", "timed_out", "aborted", "skipped", "missed"]
LEVELS = ["L0", "L1", "L2", "L3", "L4", "L5", "L6", "L7", "L8"]


class Wrong(Exception):
    """Something that was read is not what it has to be."""


# ---------------------------------------------------------------- Ed25519, RFC 8032

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
ROOT = pow(2, (P - 1) // 4, P)


def _recover_x(y, sign):
    if y >= P:
        return None
    xx = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(xx, (P + 3) // 8, P)
    if (x * x - xx) % P:
        x = x * ROOT % P
    if (x * x - xx) % P or (x == 0 and sign):
        return None
    return P - x if x & 1 != sign else x


def _point(data):
    y = int.from_bytes(data, "little")
    x = _recover_x(y & ((1 << 255) - 1), y >> 255)
    if x is None:
        return None
    y &= (1 << 255) - 1
    return (x, y, 1, x * y % P)


def _add(a, b):
    e, f = (a[1] - a[0]) * (b[1] - b[0]) % P, (a[1] + a[0]) * (b[1] + b[0]) % P
    g, h = 2 * a[3] * b[3] * D % P, 2 * a[2] * b[2] % P
    i, j, k, l = f - e, h - g, h + g, f + e
    return (i * j % P, k * l % P, j * k % P, i * l % P)


def _times(n, point):
    total = (0, 1, 1, 0)
    while n:
        if n & 1:
            total = _add(total, point)
        point, n = _add(point, point), n >> 1
    return total


BASE_Y = 4 * pow(5, P - 2, P) % P
BASE_X = _recover_x(BASE_Y, 0)
BASE = (BASE_X, BASE_Y, 1, BASE_X * BASE_Y % P)


def ed25519(public, message, signature):
    if len(public) != 32 or len(signature) != 64:
        return False
    key, r, s = _point(public), _point(signature[:32]), int.from_bytes(signature[32:], "little")
    if key is None or r is None or s >= L:
        return False
    k = int.from_bytes(hashlib.sha512(signature[:32] + public + message).digest(), "little") % L
    a, b = _times(s, BASE), _add(r, _times(k, key))
    return (a[0] * b[2] - b[0] * a[2]) % P == 0 and (a[1] * b[2] - b[1] * a[2]) % P == 0


# ---------------------------------------------------------------- notes and checkpoints, C2SP


def decode64(text):
    """Standard base64 in its one canonical form."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as err:
        raise Wrong("not base64") from err
    if base64.b64encode(data).decode() != text:
        raise Wrong("not canonical base64")
    return data


class Key:
    """A note verifier key (algorithm 1), or that of a witness (algorithm 4)."""

    def __init__(self, text, algorithm=1):
        parts = text.strip().split("+", 2)
        if len(parts) != 3 or not re.fullmatch("[0-9a-f]{8}", parts[1]):
            raise Wrong("%r is no verifier key: want NAME+HASH+KEY" % text)
        self.name, self.hash, data = parts[0], bytes.fromhex(parts[1]), decode64(parts[2])
        if len(data) != 33 or data[0] != algorithm:
            raise Wrong("%r is no Ed25519 verifier key of algorithm %d" % (text, algorithm))
        if hashlib.sha256(self.name.encode() + b"\n" + data).digest()[:4] != self.hash:
            raise Wrong("%r: its hash is not that of its key: it was copied wrongly" % text)
        self.public = data[1:]

    def signed(self, text, sig):
        """Is sig, without the key's hash, this key's signature of text?"""
        return ed25519(self.public, text, sig)


class Witness(Key):
    def __init__(self, text):
        super().__init__(text, 4)

    def signed(self, text, sig):
        if len(sig) != 72:
            return False
        head = b"cosignature/v1\ntime %d\n" % int.from_bytes(sig[:8], "big")
        return ed25519(self.public, head + text, sig[8:])


def open_note(data, keys):
    """Return a signed note's text and its first known signer."""
    try:
        whole = data.decode()
    except UnicodeDecodeError as err:
        raise Wrong("a note is not UTF-8") from err
    at = whole.rfind("\n\n")
    if at < 0 or not whole.endswith("\n") or any(ord(c) < 0x20 and c != "\n" for c in whole):
        raise Wrong("not a signed note")
    text, signer = whole[: at + 1], None
    for line in whole[at + 2 : -1].split("\n"):
        found = re.fullmatch("\u2014 ([^ +]+) ([^ ]+)", line)
        if not found:
            raise Wrong("a line of signatures is none")
        try:
            sig = base64.b64decode(found[2], validate=True)
        except (binascii.Error, ValueError) as err:
            raise Wrong("a signature is not base64") from err
        for key in keys:
            if key.name == found[1] and key.hash == sig[:4]:
                decode64(found[2])
                if not key.signed(text.encode(), sig[4:]):
                    raise Wrong("the signature of %s is wrong" % key.name)
                signer = signer or key.name
    if signer is None:
        raise Wrong("no trusted key signed it")
    return text, signer


class Checkpoint:
    """A signed size and root of a log."""

    def __init__(self, text):
        lines = text.split("\n")
        if len(lines) != 4 or lines[3] or not re.fullmatch("[1-9][0-9]{0,18}", lines[1]):
            raise Wrong("not a checkpoint")
        self.log, self.size, self.root = lines[0], int(lines[1]), decode64(lines[2])
        self.origin = self.log.rsplit("/", 1)[-1]
        if self.size >= 1 << 53:
            raise Wrong("not a checkpoint: it is of size %d" % self.size)
        if len(self.root) != 32:
            raise Wrong("not a checkpoint: its root is no hash")


def signed_checkpoint(data, keys, log):
    text, signer = open_note(data, keys)
    c = Checkpoint(text)
    if c.log != log:
        raise Wrong("it is of log %r, want %r" % (c.log, log))
    c.signer = signer
    return c


# ---------------------------------------------------------------- the tree, RFC 6962


def leaf_hash(leaf):
    return hashlib.sha256(b"\x00" + leaf).digest()


def node_hash(a, b):
    return hashlib.sha256(b"\x01" + a + b).digest()


def roots(hashes, sizes):
    """The roots of the first n leaves, for each n of sizes: one pass."""
    out, stack = {}, []
    for n, h in enumerate(hashes, 1):
        stack.append(h)
        m = n
        while m & 1 == 0:
            right = stack.pop()
            stack[-1] = node_hash(stack[-1], right)
            m >>= 1
        if n in sizes:
            root = stack[-1]
            for left in reversed(stack[:-1]):
                root = node_hash(left, root)
            out[n] = root
    return out


def proven_root(leaf, index, size, path):
    """The root that an inclusion path leads to (RFC 9162, section 2.1.3.2)."""
    if index >= size:
        raise Wrong("the proof's entry is beyond its tree")
    fn, sn, r = index, size - 1, leaf
    for p in path:
        if sn == 0:
            raise Wrong("the proof is too long")
        if fn & 1 or fn == sn:
            r = node_hash(p, r)
            while fn and not fn & 1:
                fn, sn = fn >> 1, sn >> 1
        else:
            r = node_hash(r, p)
        fn, sn = fn >> 1, sn >> 1
    if sn:
        raise Wrong("the proof is too short")
    return r


# ---------------------------------------------------------------- canonical JSON, RFC 8785


def canonical(v):
    if v is None:
        return "null"
    if v is True:
        return "true"
    if v is False:
        return "false"
    if isinstance(v, str):
        return json.dumps(v, ensure_ascii=False)
    if isinstance(v, (int, float)):
        return number(float(v))
    if isinstance(v, list):
        return "[" + ",".join(canonical(x) for x in v) + "]"
    keys = sorted(v, key=lambda k: k.encode("utf-16-be", "surrogatepass"))
    return "{" + ",".join(json.dumps(k, ensure_ascii=False) + ":" + canonical(v[k]) for k in keys) + "}"


def number(f):
    """ECMAScript's shortest form of a double."""
    if f == 0:
        return "0"
    if f < 0:
        return "-" + number(-f)
    mantissa, _, exponent = ("%r" % f).partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    point = len(whole) + int(exponent or 0) if whole.strip("0") else int(exponent or 0) - (len(fraction) - len(fraction.lstrip("0")))
    digits = digits.rstrip("0")
    n = len(digits)
    if n <= point <= 21:
        return digits + "0" * (point - n)
    if 0 < point <= 21:
        return digits[:point] + "." + digits[point:]
    if -6 < point <= 0:
        return "0." + "0" * -point + digits
    e = "e%+d" % (point - 1)
    return digits[0] + ("." + digits[1:] if n > 1 else "") + e


def no_constant(name):
    raise ValueError(name)


def no_twins(pairs):
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a key stands twice")
    return out


def parse(text):
    return json.loads(text, parse_constant=no_constant, object_pairs_hook=no_twins)


# ---------------------------------------------------------------- times: nanoseconds since 1970, UTC

TIME = re.compile(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(?:Z|([+-])(\d\d):(\d\d))")


def when(text):
    found = TIME.fullmatch(text) if isinstance(text, str) else None
    if not found:
        raise Wrong("%r is no time" % (text,))
    y, mo, d, h, mi, s = (int(x) for x in found.groups()[:6])
    try:
        day = datetime.date(y, mo, d).toordinal() - datetime.date(1970, 1, 1).toordinal()
    except ValueError as err:
        raise Wrong("%r is no time" % text) from err
    if h > 23 or mi > 59 or s > 59:
        raise Wrong("%r is no time" % text)
    secs = ((day * 24 + h) * 60 + mi) * 60 + s
    if found[8]:
        off = (int(found[9]) * 60 + int(found[10])) * 60
        secs -= off if found[8] == "+" else -off
    return secs * SECOND + int((found[7] or "").ljust(9, "0"))


def seconds_text(secs):
    return (datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=secs)).strftime("%Y-%m-%dT%H:%M:%SZ")


def stamp(ns):
    return seconds_text(ns // SECOND)


def nanos_text(ns):
    text, rest = seconds_text(ns // SECOND), ("%09d" % (ns % SECOND)).rstrip("0")
    return text[:-1] + ("." + rest if rest else "") + "Z"


# ---------------------------------------------------------------- schedules

NAMES = [
    {},
    {},
    {},
    {m: i for i, m in enumerate("jan feb mar apr may jun jul aug sep oct nov dec".split(), 1)},
    {d: i for i, d in enumerate("sun mon tue wed thu fri sat".split())},
]
BOUNDS = [(0, 59), (0, 23), (1, 31), (1, 12), (0, 6)]
EVERY = {
    "@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *", "@monthly": "0 0 1 * *", "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@hourly": "0 * * * *",
}


def cron_field(text, low, high, names):
    """The values of a field, and whether it is a star."""
    values, star = set(), False
    for part in text.split(","):
        span, _, step = part.partition("/")
        step = int(step) if step else 1
        if step < 1:
            raise Wrong("a step of %d" % step)
        if span in ("*", "?"):
            first, last = low, high
            star = star or step == 1
        else:
            a, dash, b = span.partition("-")
            first = names.get(a.lower(), None)
            first = int(a) if first is None else first
            last = first
            if dash:
                last = names.get(b.lower(), None)
                last = int(b) if last is None else last
            elif "/" in part:
                last = high
        if first < low or last > high or first > last:
            raise Wrong("%r is out of bounds" % part)
        values.update(range(first, last + 1, step))
    return values, star


class Cron:
    """Five fields of wall-clock time in a zone. A time that daylight saving skips
    comes when the gap ends, one that it repeats the first time."""

    def __init__(self, spec):
        fields, self.zone = spec.strip(), None
        if fields.startswith("CRON_TZ="):
            name, _, fields = fields[len("CRON_TZ="):].partition(" ")
            import zoneinfo

            self.zone = zoneinfo.ZoneInfo(name)  # raises where there is no data base
        parts = EVERY.get(fields.strip(), fields).split()
        if len(parts) != 5:
            raise Wrong("%r has %d fields, want 5" % (spec, len(parts)))
        try:
            parsed = [cron_field(p, *BOUNDS[i], NAMES[i]) for i, p in enumerate(parts)]
        except ValueError as err:
            raise Wrong("schedule %r: %s" % (spec, err)) from err
        self.minutes, self.hours, self.days, self.months, self.weekdays = (p[0] for p in parsed)
        self.either = not (parsed[2][1] or parsed[4][1])

    def offset(self, secs):
        if self.zone is None:
            return 0
        at = datetime.datetime.fromtimestamp(secs, datetime.timezone.utc).astimezone(self.zone)
        return int(at.utcoffset().total_seconds())

    def day_fits(self, date):
        day, weekday = date.day in self.days, date.isoweekday() % 7 in self.weekdays
        return date.month in self.months and (day or weekday if self.either else day and weekday)

    def instant(self, wall):
        """When a clock in the zone first shows wall, or jumps over it."""
        seen = {self.offset(wall + d * 3600) for d in (-36, 0, 36)} | {self.offset(wall - o) for o in (self.offset(wall),)}
        fits = [wall - o for o in seen if self.offset(wall - o) == o]
        if fits:
            return min(fits)
        low, high = wall - 36 * 3600, wall + 36 * 3600  # the clock shows less than wall at low, more at high
        while high - low > 1:
            mid = (low + high) // 2
            if mid + self.offset(mid) < wall:
                low = mid
            else:
                high = mid
        return high

    def slots(self, after, until):
        """The slots in (after, until], in nanoseconds."""
        out, first = [], after // SECOND - 86400 * 2
        date = datetime.date(1970, 1, 1) + datetime.timedelta(days=(first + self.offset(first)) // 86400)
        last = until // SECOND + 86400 * 2
        while (date - datetime.date(1970, 1, 1)).days * 86400 <= last:
            if self.day_fits(date):
                midnight = (date - datetime.date(1970, 1, 1)).days * 86400
                for h in sorted(self.hours):
                    for m in sorted(self.minutes):
                        at = self.instant(midnight + h * 3600 + m * 60) * SECOND
                        if after < at <= until:
                            out.append(at)
            if len(out) > MAX_SLOTS * 2:
                break
            date += datetime.timedelta(days=1)
        if len(set(out)) > MAX_SLOTS:
            raise Wrong("more than %d slots" % MAX_SLOTS)
        return sorted(set(out))


# ---------------------------------------------------------------- the bundle


class Record:
    def __init__(self, origin, index, leaf):
        self.origin, self.index, self.leaf = origin, index, leaf
        try:
            text = leaf.decode()
            self.entry = parse(text)
            same = canonical(self.entry) == text
        except (ValueError, RecursionError, OverflowError) as err:
            raise Wrong("entry is not JSON: %s" % err) from err
        if not isinstance(self.entry, dict) or not same:
            raise Wrong("entry is not canonical JSON (RFC 8785)")
        if self.entry.get("schema") != SCHEMA:
            raise Wrong("entry of schema %r, want %r" % (self.entry.get("schema"), SCHEMA))
        try:
            self.type, self.id, self.body = str(self.entry["type"]), str(self.entry["record_id"]), self.entry["body"]
            self.wall, self.node = when(self.entry["time"]["wall"]), str(self.entry["host"].get("node", ""))
        except (KeyError, TypeError, AttributeError) as err:
            raise Wrong("entry without a field that every entry has: %s" % err) from err
        if not isinstance(self.body, dict):
            raise Wrong("entry whose body is no object")


class Log:
    def __init__(self, origin):
        self.origin, self.checkpoints, self.files = origin, {}, {}
        self.top, self.hashes, self.start, self.records, self.roots = None, [], 0, [], {}

    def contains(self, size, root):
        if size not in self.roots:
            self.roots.update(roots(self.hashes, {size}))
        return self.roots.get(size) == root


def tile_number(n):
    text = "%03d" % (n % 1000)
    while n >= 1000:
        n //= 1000
        text = "x%03d/" % (n % 1000) + text
    return text


def tile_path(kind, n, width):
    return "tile/%s/%s%s" % (kind, tile_number(n), "" if width == WIDTH else ".p/%d" % width)


def read_bundle(data):
    """The files of a bundle, and its head."""
    files = {}
    if len(data) % 512:
        raise Wrong("it is cut off")
    try:
        tar = tarfile.open(fileobj=io.BytesIO(data), mode="r:")
        for member in tar:
            name = member.name
            known = name in ("bundle.json", "README.txt", "verify.py") or name.startswith(("ledger/", "proofs/"))
            if name in files:
                raise Wrong("it holds %r twice" % name)
            if member.type != tarfile.REGTYPE or not known or "//" in name or "/./" in name or ".." in name.split("/"):
                raise Wrong("it holds %r, which no bundle does" % name)
            if member.size > MAX_OBJECT or len(files) >= MAX_OBJECTS:
                raise Wrong("%r is too large" % name)
            body = tar.extractfile(member).read()
            if len(body) != member.size:
                raise Wrong("%r is cut off" % name)
            files[name] = body
    except (tarfile.TarError, EOFError) as err:
        raise Wrong("reading the tar: %s" % err) from err
    try:
        head = json.loads(files["bundle.json"])
        head["from"], head["to"] = when(head["from"]), when(head["to"])
        if not isinstance(head.get("left_out") or [], list):
            raise Wrong("left_out is no list")
        seconds_text(head["from"] // SECOND), seconds_text(head["to"] // SECOND)
    except Exception as err:  # whatever it is made of
        raise Wrong("bundle.json: %s" % err) from err
    if head.get("format") != FORMAT or not head.get("repository") or head["from"] >= head["to"]:
        raise Wrong("bundle.json is none of format %s" % FORMAT)
    return files, head


class Verifier:
    def __init__(self, keys, known, witnesses, gone, period):
        self.keys, self.known, self.witnesses, self.gone, self.asked = keys, known, witnesses, gone, period
        self.faults, self.drills, self.not_assessed, self.logs = [], [], [], {}

    def fault(self, code, origin, index, what):
        self.faults.append({"code": code, "origin": origin, "index": index, "what": what})

    def verify(self, data):
        try:
            self.files, self.head = read_bundle(data)
        except Wrong as err:
            self.fault("bundle", "", -1, "not a bundle of evidence: %s" % err)
            return
        self.start, self.end = self.asked or (self.head["from"], self.head["to"])
        self.sort_files()
        for origin in sorted(self.logs):
            self.log(self.logs[origin])
        if not self.logs:
            self.fault("bundle", "", -1, "it holds no ledger")
        for origin in self.head.get("left_out") or []:
            self.not_assessed.append("the ledger %s: it has no checkpoint that a trusted key signed" % origin)
        self.contained()
        self.witnessed()
        self.proofs()
        Judge(self).judge()
        self.covered()

    def sort_files(self):
        for name, body in self.files.items():
            if not name.startswith("ledger/"):
                continue
            origin, _, path = name[len("ledger/"):].partition("/")
            if not re.fullmatch("[a-z0-9][a-z0-9_-]{0,71}", origin) or not path:
                continue
            log = self.logs.setdefault(origin, Log(origin))
            size = re.fullmatch("checkpoint/([1-9][0-9]{0,18})", path)
            if size:
                log.checkpoints[int(size[1])] = body
            else:
                log.files[path] = body

    # a log: its checkpoints, the hashes of all entries, the entries from log.start on
    def log(self, log):
        good = []
        for size in sorted(log.checkpoints):
            try:
                c = signed_checkpoint(log.checkpoints[size], self.keys, "holdfast/%s/%s" % (self.head["repository"], log.origin))
                if c.size != size:
                    raise Wrong("it is of size %d" % c.size)
                good.append(c)
            except Wrong as err:
                self.fault("signature", log.origin, size, "checkpoint: %s" % err)
        if not good:
            self.fault("signature", log.origin, -1, "it has no checkpoint that a trusted key signed")
            return
        log.top = good[-1]
        if log.top.size > WIDTH * (MAX_OBJECTS + 1):
            self.fault("gap", log.origin, 0, "the hashes of its entries are missing")
            return
        width = {n: min(WIDTH, log.top.size - n * WIDTH) for n in range(-(-log.top.size // WIDTH))}
        hashes = {tile_path("0", n, w): n for n, w in width.items()}
        bundles = {tile_path("entries", n, w): n for n, w in width.items()}
        for path in log.files:
            if path not in hashes and path not in bundles:
                self.fault("bundle", log.origin, -1, "%s is not an object of this excerpt" % path)
        for path, n in hashes.items():
            body = log.files.get(path, b"")
            if len(body) != width[n] * 32:
                self.fault("gap", log.origin, n * WIDTH, "the hashes of its entries are missing")
                log.hashes = []
                return
            log.hashes += [body[i : i + 32] for i in range(0, len(body), 32)]
        log.roots = roots(log.hashes, {c.size for c in good})
        for c in good:
            if log.roots.get(c.size) != c.root:
                self.fault("root", log.origin, c.size, "the hashes do not give its root")
        self.entries(log, {n: log.files[p] for p, n in bundles.items() if p in log.files}, width)

    def entries(self, log, bundles, width):
        if not bundles:
            log.start = log.top.size
            self.fault("gap", log.origin, log.top.size - 1, "none of its entries is there")
            return
        log.start = min(bundles) * WIDTH
        for n in range(min(bundles), len(width)):
            if n not in bundles:
                self.fault("gap", log.origin, n * WIDTH, "entries from here on are missing")
                continue
            self.bundle(log, n, bundles[n], width[n])
        if log.records and log.start and not any(r.wall < self.start for r in log.records):
            self.fault("gap", log.origin, log.start, "the first entry that is there is of %s: earlier ones of the period may be left out" % stamp(log.records[0].wall))

    def bundle(self, log, n, data, width):
        at, count = 0, 0
        while at < len(data) and count < width:
            size = int.from_bytes(data[at : at + 2], "big")
            if len(data) < at + 2 + size or len(data) < at + 2:
                break
            leaf, index = data[at + 2 : at + 2 + size], n * WIDTH + count
            at, count = at + 2 + size, count + 1
            try:
                if leaf_hash(leaf) != log.hashes[index]:
                    raise Wrong("the entry is not the one that was hashed")
                log.records.append(Record(log.origin, index, leaf))
            except Wrong as err:
                self.fault("entry", log.origin, index, str(err))
        if count < width or at < len(data):
            self.fault("entry", log.origin, n * WIDTH + min(count, width - 1), "the bundle of entries is cut, or has more than it should")

    def contained(self):
        """Checkpoints seen elsewhere must be of these logs."""
        known = [(c.origin, c.size, c.root) for c in self.known]
        for log in self.logs.values():
            for r in log.records:
                if r.type == "origin":
                    try:
                        known += [(p["origin"], p["size"], decode64(p["root"])) for p in r.body["after"] or []]
                    except (KeyError, TypeError, Wrong) as err:
                        self.fault("entry", r.origin, r.index, "body of an origin entry: %s" % err)
        for origin, size, root in known:
            log = self.logs.get(origin)
            if log is None or not log.contains(size, root):
                self.fault("cut", origin, size, "a checkpoint of size %d was seen elsewhere, and this log does not contain it" % size)

    def witnessed(self):
        """The reader's witnesses must have cosigned the newest checkpoints."""
        for log in self.logs.values():
            if log.top is None or not log.records or log.records[-1].wall < self.start:
                continue
            for w in self.witnesses:
                try:
                    open_note(log.checkpoints[log.top.size], [w])
                except Wrong:
                    self.fault("witness", log.origin, log.top.size, "no witness %s has cosigned the newest checkpoint" % w.name)

    def covered(self):
        """Every node's entries must reach the period's end."""
        newest = {}
        for log in self.logs.values():
            if log.records and (log.records[0].node not in newest or log.records[-1].wall > newest[log.records[0].node].records[-1].wall):
                newest[log.records[0].node] = log
        for node, log in newest.items():
            last = log.records[-1].wall
            if node in self.gone:
                continue
            if last < self.start:
                self.not_assessed.append("node %s: the newest entry of its ledgers is of %s, before the period" % (node, stamp(last)))
            elif last < self.end - END_SLACK:
                self.fault("gap", log.origin, log.top.size, "the newest entry of node %s is of %s, and the period goes on until %s" % (node, stamp(last), stamp(self.end)))

    def proofs(self):
        for name in sorted(n for n in self.files if n.startswith("proofs/")):
            found = re.fullmatch(r"proofs/([^/]+)/(0|[1-9][0-9]{0,18})\.tlog-proof", name)
            if not found:
                self.fault("bundle", "", -1, "it holds %r, which no bundle does" % name)
                continue
            origin, index = found[1], int(found[2])
            try:
                leaf = [r.leaf for r in self.logs[origin].records if r.index == index] if origin in self.logs else []
                if not leaf:
                    raise Wrong("its entry is not there")
                self.proof(self.files[name], leaf[0], origin, index)
            except Wrong as err:
                self.fault("proof", origin, index, str(err))

    def proof(self, data, leaf, origin, index):
        head, sep, signed = data.partition(b"\n\n")
        lines = head.decode("utf-8", "replace").split("\n")
        if not sep or lines[0] != "c2sp.org/tlog-proof@v1" or lines[1:2] != ["index %d" % index]:
            raise Wrong("not a proof of this entry")
        c = signed_checkpoint(signed, self.keys, "holdfast/%s/%s" % (self.head["repository"], origin))
        path = [decode64(line) for line in lines[2:]]
        if any(len(h) != 32 for h in path) or proven_root(leaf_hash(leaf), index, c.size, path) != c.root:
            raise Wrong("it does not lead from the entry to the root")


# ---------------------------------------------------------------- what the entries say


class Judge:
    def __init__(self, v):
        self.v, self.ids, self.dues, self.outcomes, self.abandoned, self.plans, self.last, self.listed = v, set(), {}, {}, {}, {}, {}, set()
        v.until = 0

    def fault(self, code, r, what):
        self.v.fault(code, r.origin, r.index, what)

    def in_period(self, ns):
        return self.v.start <= ns < self.v.end

    def judge(self):
        for origin in sorted(self.v.logs):
            self.log(self.v.logs[origin].records)
        for plans in self.plans.values():
            plans.sort(key=lambda r: r.wall)
        self.slots()
        self.scheduled()
        self.v.drills.sort(key=lambda d: (d["due_at"], d["slot"]))

    def log(self, records):
        before = None
        for r in records:
            if r.id in self.ids:
                self.fault("entry", r, "its record id %s was used before" % r.id)
            self.ids.add(r.id)
            if before is not None and r.wall < before - CLOCK_SLACK:
                self.fault("clock", r, "it is of %s, and stands behind an entry of %s" % (stamp(r.wall), stamp(before)))
            before = r.wall
            self.v.until = max(self.v.until, r.wall)
            self.last[r.node] = max(self.last.get(r.node, 0), r.wall)
            try:
                self.entry(r)
            except Exception as err:  # whatever it is made of
                self.fault("slot", r, "its body cannot be read: %s" % err)

    def entry(self, r):
        b = r.body
        if r.type in ("drill.due", "drill.outcome", "drill.plans"):
            plain_keys(b)
        if r.type == "drill.due":
            slot, at, deadline = b["slot"], when(b["due_at"]), when(b["deadline"])
            if not slot:
                raise Wrong("it announces no slot")
            own = "%s/%s" % (b["drill"], stamp(at))
            if slot != own and not slot.startswith(b["drill"] + "/asked/"):
                raise Wrong("it announces the slot %r, and its time makes it %r" % (slot, own))
            if deadline - at > MOST_OWED:
                raise Wrong("slot %s has until %s: longer than any slot" % (slot, stamp(deadline)))
            if slot in self.dues:
                if self.dues[slot][1:3] != (at, deadline):
                    raise Wrong("slot %s is announced again for another time" % slot)
                return
            self.dues[slot] = (r, at, deadline)
        elif r.type == "drill.outcome":
            if b.get("outcome") not in OUTCOMES:
                raise Wrong("outcome %r is none" % b.get("outcome"))
            at = b.get("due_at")
            r.due_at = when(at) if at is not None else NEVER
            self.outcomes.setdefault(str(b.get("slot", "")), []).append(r)
        elif r.type == "drill.plans":
            for d in b.get("drills") or []:
                if not (isinstance(d.get("name", ""), str) and isinstance(d.get("schedule", ""), str) and isinstance(d.get("owes", 0), (int, float))):
                    raise Wrong("a drill of them is none")
            self.plans.setdefault(r.node, []).append(r)
            for a in b.get("abandoned") or []:
                self.abandoned["%s/%s" % (a["drill"], stamp(when(a["due_at"])))] = (r, str(a.get("why", "")))

    def slots(self):
        for slot, (due, at, deadline) in self.dues.items():
            if not self.in_period(at):
                continue
            told = self.outcomes.get(slot, [])
            line = {"slot": slot, "name": due.body.get("drill", ""), "due_at": at, "outcome": "pending", "late": due.wall > deadline}
            if not told and deadline < self.v.until:
                line["outcome"] = "missing"
                self.fault("slot", due, "slot %s was due by %s and has no outcome" % (slot, stamp(deadline)))
            if told:
                line["outcome"], line["reason"] = told[0].body["outcome"], told[0].body.get("reason", "")
                rto = told[0].body.get("rto")
                line["rto"] = rto.get("measured") if isinstance(rto, dict) else None
                self.record(due, told[0])
            for more in told[1:]:
                self.fault("slot", more, "slot %s has a second outcome" % slot)
            self.v.drills.append(line)
        for slot, told in self.outcomes.items():
            if slot not in self.dues and self.in_period(told[0].due_at):
                self.fault("slot", told[0], "outcome of slot %r, which was never announced" % slot)

    def record(self, due, r):
        b = r.body
        try:
            chosen = b.get("selection")
            if r.origin != due.origin or r.index <= due.index or (chosen is not None and chosen.get("due_index") != due.index):
                self.fault("slot", r, "it does not follow the entry that announced it, %d of %s" % (due.index, due.origin))
            began, end = (when(b[k]) if k in b else NEVER for k in ("started_at", "finished_at"))
            if end < due.wall - CLOCK_SLACK or abs(end - r.wall) > CLOCK_SLACK or end < began:
                self.fault("outcome", r, "its times are not those between the entries that announced and told it")
            if not self.configured(due):
                self.fault("slot", r, "it is not what the node was configured to run")
        except Exception as err:  # whatever it is made of
            self.fault("slot", r, "its body cannot be read: %s" % err)
        if b.get("plan_hash") != due.body.get("plan_hash"):
            self.fault("slot", r, "it ran another plan than was announced")
        try:
            if b.get("selection") is not None and (b.get("target") is not None or b.get("failure") is None):
                self.choice(due, b)
        except Exception as err:  # whatever it is made of
            self.fault("choice", r, "the choice is not the one that its slot's entry makes: %s" % err)
        try:
            self.entailed(b)
        except Exception as err:  # whatever it is made of
            self.fault("outcome", r, "its outcome does not follow from the rest of it: %s" % err)

    def configured(self, due):
        """Do the entries about plans around an announcement name its drill?"""
        if due.body.get("trigger") != "schedule":
            return True
        around = []
        for p in self.plans.get(due.node, []):
            if p.wall > due.wall:
                around.append(p)
                break
            around = [p]
        names = [(d.get("name"), d.get("cluster"), d.get("plan_hash")) for p in around for d in p.body.get("drills") or []]
        return not around or (due.body.get("drill"), due.body.get("cluster"), due.body.get("plan_hash")) in names

    def choice(self, due, b):
        pick = due.body.get("pick")
        if pick is None:
            raise Wrong("nothing was chosen")
        snapshot, target = choose(due.body["plan_hash"], due.body["slot"], pick)
        if b.get("target") != target or (snapshot and snapshot != b.get("snapshot")):
            raise Wrong("it restored %s to %s, and it chooses %s to %s" % (b.get("snapshot"), b.get("target"), snapshot, target))

    def entailed(self, b):
        level = reached(b.get("checks") or [])
        if level != b.get("level", ""):
            raise Wrong("it says that it reached level %r, and its checks say %r" % (b.get("level", ""), level))
        outcome, fault_class = verdict(b)
        if (outcome, fault_class) != (b["outcome"], b.get("class", "")):
            raise Wrong("it says %s, and what it saw says %s" % (b["outcome"], outcome))

    def scheduled(self):
        for node in sorted(self.last):
            plans = self.plans.get(node, [])
            if not plans or plans[0].wall > self.v.start:
                self.v.not_assessed.append("whether node %s announced every slot before %s" % (node, stamp(plans[0].wall) if plans else "its last entry"))
            for i, r in enumerate(plans):
                end = plans[i + 1].wall if i + 1 < len(plans) else self.last[node]
                for d in r.body.get("drills") or []:
                    try:
                        self.planned(node, r, d, max(r.wall, self.v.start - 1), min(end, self.v.end - 1), end)
                    except Exception as err:  # whatever it is made of
                        self.fault("schedule", r, "a plan that cannot be read: %s" % err)

    def planned(self, node, r, d, after, until, end):
        if not d.get("schedule") or after >= until:
            return
        try:
            slots = Cron(d["schedule"]).slots(after, until)
        except (ImportError, KeyError, OSError) as err:  # zoneinfo's own error is a KeyError
            self.v.not_assessed.append("whether every slot of drill %s was announced: no data base of time zones here (%s)" % (d["name"], err))
            return
        except Wrong as err:
            self.fault("schedule", r, "drill %s: %s" % (d["name"], err))
            return
        owes = d.get("owes", 0)
        if owes < 0 or owes * SECOND > MOST_OWED:
            raise Wrong("drill %s owes its outcomes after %g s: longer than any slot" % (d["name"], owes))
        for at in slots:
            key = "%s/%s" % (d["name"], stamp(at))
            if key in self.dues or key in self.listed:
                continue
            self.listed.add(key)
            line = {"slot": key, "name": d["name"], "due_at": at, "outcome": "missing"}
            by, why = self.abandoned.get(key, (None, ""))
            if by is not None and by.node == node and by.wall <= end + CLOCK_SLACK:
                line["outcome"], line["reason"] = "abandoned", why
            elif at + int(owes * SECOND) >= self.last[node]:
                line["outcome"] = "pending"
            else:
                self.fault("schedule", r, "drill %s was due at %s, and no entry announced it" % (d["name"], stamp(at)))
            self.v.drills.append(line)


def plain_keys(v):
    """Refuse keys that some readers take for others: JSON decoders may fold case."""
    if isinstance(v, list):
        for x in v:
            plain_keys(x)
    if isinstance(v, dict):
        for k, x in v.items():
            if any(ord(c) > 0x7F or "A" <= c <= "Z" for c in k):
                raise Wrong("its body has the key %r, which some readers take for another" % k)
            plain_keys(x)


def choose(plan_hash, slot, pick):
    """What the entry that announced a slot chooses to restore."""
    seed = canonical({"plan_hash": plan_hash, "slot": slot, "pick": pick})
    drawn = int.from_bytes(hashlib.sha256(seed.encode()).digest(), "big")
    ids, select = [c["id"] for c in pick.get("candidates") or []], pick["select"]
    if not ids:
        raise Wrong("there was nothing to choose from")
    zone = {"zone": pick["zone"]} if pick.get("zone") else {}
    if select == "random_time":
        spans = [((when(s["from"]) // 1_000_000), (when(s["to"]) // 1_000_000)) for s in pick.get("spans") or []]
        at = drawn % (sum(max(b - a, 0) for a, b in spans) or 1)
        for a, b in spans:
            if at < max(b - a, 0):
                return "", {"kind": "time", "time": nanos_text((a + 1 + at) * 1_000_000), **zone}
            at -= max(b - a, 0)
        raise Wrong("no span of time was covered")
    stalest = min(range(len(ids)), key=lambda i: when(pick["candidates"][i]["proven_at"]) if "proven_at" in pick["candidates"][i] else NEVER)
    places = {"latest": len(ids) - 1, "oldest": 0, "random": drawn % len(ids), "stalest": stalest}
    if select not in places:
        raise Wrong("selector %r" % select)
    chosen = ids[places[select]]
    return chosen, {"kind": "latest" if select == "latest" else "immediate", "snapshot": chosen, **zone}


def reached(checks):
    """The highest level up to which every check passed."""
    verdicts, top = {c["id"]: c["verdict"] for c in checks}, ""
    for level in LEVELS:
        if verdicts.get(level) != "pass":
            break
        top = level
    return top


def rung(level):
    return LEVELS.index(level) if level in LEVELS else -1


def verdict(b):
    """The outcome, and the class of what is at fault, that follow from a record."""
    failure = b.get("failure")
    if failure is not None:
        return failure["outcome"], failure["class"]
    gaps = False
    for c in b.get("checks") or []:
        if c["verdict"] == "fail":
            return "fail", c.get("class", "")
        gaps = gaps or c["verdict"] == "gap"
    if not (b.get("cleanup") or {}).get("verified"):
        return "fail", "target"
    if (b.get("rto") or {}).get("met") is False:
        return "fail", "policy"
    room = (b.get("environment") or {}).get("isolation") or {}
    gaps = gaps or (b.get("rpo") or {}).get("met") is False or not room.get("no_egress")
    gaps = gaps or rung(b.get("level", "")) < rung(b.get("level_wanted", "")) or rung(b.get("level", "")) < rung("L4")
    return ("pass_with_gaps" if gaps else "pass"), ""


# ---------------------------------------------------------------- the command


def known_checkpoints(path):
    """The checkpoints of a kept checkpoint, or of an earlier bundle."""
    with open(path, "rb") as f:
        data = f.read()
    try:
        files, _ = read_bundle(data)
        notes = [files[n] for n in files if re.fullmatch("ledger/[^/]+/checkpoint/[0-9]+", n)]
    except Wrong:
        notes = [data]
    return [Checkpoint(n.decode().partition("\n\n")[0] + "\n") for n in notes]


def moment(text):
    return when(text if "T" in text else text + "T00:00:00Z")


def arguments():
    p = argparse.ArgumentParser(description="Verify a bundle of evidence offline.", epilog="Exit codes: 0 everything holds, 2 usage, 4 something does not hold.")
    p.add_argument("file", metavar="FILE", help="what `holdfast evidence export` wrote")
    p.add_argument("--key", metavar="VKEY", action="append", required=True, help="verifier key to trust; may be repeated")
    p.add_argument("--known", metavar="FILE", action="append", default=[], help="a checkpoint that you kept, or an earlier bundle")
    p.add_argument("--witness", metavar="VKEY", action="append", default=[], help="key of a witness that must have cosigned the newest checkpoints")
    p.add_argument("--gone", metavar="NODE", action="append", default=[], help="a node that was given up and may be silent in the period")
    p.add_argument("--from", dest="start", metavar="DAY", help="beginning of the period that you asked for")
    p.add_argument("--to", dest="end", metavar="DAY", help="its end, not included")
    p.add_argument("--output", choices=["text", "json"], default="text")
    a = p.parse_args()
    try:
        a.keys, a.witnesses = [Key(k) for k in a.key], [Witness(k) for k in a.witness]
        a.seen = [c for f in a.known for c in known_checkpoints(f)]
        a.period = (moment(a.start), moment(a.end)) if a.start and a.end else None
        with open(a.file, "rb") as f:
            a.data = f.read()
    except (Wrong, OSError, ValueError) as err:
        p.error(str(err))
    if bool(a.start) != bool(a.end):
        p.error("--from and --to go together")
    return a


def main():
    a = arguments()
    v = Verifier(a.keys, a.seen, a.witnesses, a.gone, a.period)
    v.verify(a.data)
    v.faults.sort(key=lambda f: (f["origin"], f["index"], f["code"], f["what"]))
    if a.output == "json":
        drills = [{**d, "due_at": stamp(d["due_at"])} for d in v.drills]
        print(json.dumps({"ok": not v.faults, "drills": drills, "faults": v.faults, "not_assessed": v.not_assessed}, indent=2, sort_keys=True))
        return 4 if v.faults else 0
    for origin in sorted(v.logs):
        log = v.logs[origin]
        print("ledger %s: entries %d to %d of %d" % (origin, log.start, log.start + len(log.records) - 1, log.top.size if log.top else 0))
    for d in v.drills:
        rto = "" if d.get("rto") is None else ", recovered in %.0f s" % d["rto"]
        rto += ", announced LATE" if d.get("late") and d["outcome"].startswith("pass") else ""
        print("%s  %-14s %s%s%s" % (stamp(d["due_at"]), d["outcome"], d["name"], rto, "  " + d["reason"] if d.get("reason") else ""))
    counts = {}
    for d in v.drills:
        counts[d["outcome"]] = counts.get(d["outcome"], 0) + 1
    print("%d drills were due: %s" % (len(v.drills), ", ".join("%d %s" % (n, o) for o, n in sorted(counts.items())) or "none"))
    for what in v.not_assessed:
        print("not assessed:", what)
    for f in v.faults:
        print("FAULT %s%s: %s" % (f["code"], " in %s, entry %d" % (f["origin"], f["index"]) if f["origin"] else "", f["what"]))
    print("something does not hold" if v.faults else "everything holds")
    return 4 if v.faults else 0


if __name__ == "__main__":
    sys.exit(main())
