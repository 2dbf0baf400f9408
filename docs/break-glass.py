#!/usr/bin/env python3
"""Restores a PostgreSQL cluster from one zone of a Holdfast repository, without Holdfast.

    break-glass.py --repository DIR --cluster NAME --identity FILE --to DIR [--snapshot ID] [--time T]

It needs Python 3.9, the programs `age` (1.3 or newer for AGE-SECRET-KEY-PQ- keys) and `zstd`, a copy of the
zone's objects and the data identity. It reads docs/format.md's format 1 and follows its chain of trust: a note
names the manifest and the list of objects by SHA-256, the manifest names packs and page maps by SHA-256, a page
map names each frame of a pack by the SHA-256 of its compressed bytes. Nothing that does not match is written, nothing that exists is replaced.

What it cannot do: say that no newer snapshot exists elsewhere, believe signatures without --trust, and delete
again the projects that were deleted after the restored moment. It says so at the end; listen_addresses is empty
until you have seen to that.
"""
import argparse, base64, binascii, collections, contextlib, datetime, hashlib, hmac, json, os, re, shutil, struct, subprocess, sys, tempfile

BLOCK = 8192        # a page; a file's last block may be shorter
ZEROS = 0xFFFF      # the frame of a run of blocks that are all zero
CONTROL = "global/pg_control"
ENDLESS = 1 << 64   # where a timeline ends that was never left


def fail(text):
    sys.exit("break-glass: " + text)


def say(text):
    print(text, flush=True)


def lsn(text):
    """0/16B3748 as a number."""
    high, low = text.split("/")
    return int(high, 16) << 32 | int(low, 16)


def show(position):
    return "%X/%X" % (position >> 32, position & 0xFFFFFFFF)


def micros(text):
    """An RFC 3339 time as microseconds since 1970; None as 0."""
    if not text:
        return 0
    m = re.fullmatch(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(\.\d+)?([Zz]|[+-]\d\d:\d\d)", text)
    if not m:
        raise ValueError(f"{text!r}: want a time with its zone, as 2026-01-31T12:00:00Z")
    zone = "+00:00" if m[4] in "Zz" else m[4]
    at = datetime.datetime.fromisoformat(f"{m[1]}T{m[2]}{zone}") - datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
    return (at.days * 86400 + at.seconds) * 10**6 + int(((m[3] or ".") + "000000")[1:7])


def moment(at):
    """The inverse of micros."""
    return (datetime.datetime(1970, 1, 1) + datetime.timedelta(microseconds=at)).isoformat() + "Z"


def below(root, path):
    """A path of the repository or of the manifest, which must stay below root."""
    if not path or path.startswith("/") or "\0" in path or any(p in ("", ".", "..") for p in path.split("/")):
        fail(f"the repository names the path {path!r}, which cannot be")
    return os.path.join(root, path)


# --- Signatures: Ed25519 (RFC 8032), and C2SP signed notes -----------------------------------------------------

P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P


def point(data):
    """Decodes a point; None for what is none."""
    y = int.from_bytes(data, "little")
    sign, y = y >> 255, y & (1 << 255) - 1
    xx = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(xx, (P + 3) // 8, P)
    if (x * x - xx) % P:
        x = x * pow(2, (P - 1) // 4, P) % P
    if y >= P or (x * x - xx) % P or x == 0 and sign:
        return None
    x = P - x if x & 1 != sign else x
    return x, y, 1, x * y % P


def add(p, q):
    a, b = (p[1] - p[0]) * (q[1] - q[0]) % P, (p[1] + p[0]) * (q[1] + q[0]) % P
    c, d = 2 * p[3] * q[3] * D % P, 2 * p[2] * q[2] % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % P, g * h % P, f * g % P, e * h % P


def times(n, p):
    q = (0, 1, 1, 0)
    while n:
        if n & 1:
            q = add(q, p)
        p, n = add(p, p), n >> 1
    return q


BASE = point((4 * pow(5, P - 2, P) % P).to_bytes(32, "little"))


def signed(key, message, signature):
    """Whether signature is key's over message: S·B = R + h·A."""
    a, r, s = point(key), point(signature[:32]), int.from_bytes(signature[32:], "little")
    if len(signature) != 64 or a is None or r is None or s >= ORDER:
        return False
    h = int.from_bytes(hashlib.sha512(signature[:32] + key + message).digest(), "little") % ORDER
    p, q = times(s, BASE), add(r, times(h, a))
    return (p[0] * q[2] - q[0] * p[2]) % P == 0 and (p[1] * q[2] - q[1] * p[2]) % P == 0


def verifier(text):
    """A key as `holdfast keys new signing` prints it: name+hash+base64 of a 1 and 32 bytes."""
    try:
        name, digest, key = text.split("+", 2)
        key = base64.b64decode(key, validate=True)
    except ValueError:
        fail(f"--trust {text}: want NAME+HASH+KEY")
    if len(key) != 33 or key[0] != 1 or hashlib.sha256(name.encode() + b"\n" + key).hexdigest()[:8] != digest:
        fail(f"--trust {text}: this is no whole Ed25519 verifier key")
    return name, bytes.fromhex(digest), key[1:]


def trusted(data, keys):
    """Whether one of keys signed the note, and none of them falsely."""
    if not data.endswith(b"\n"):
        return False
    text, _, lines = data.rpartition(b"\n\n")
    good = 0
    for line in lines.splitlines():
        dash, _, rest = line.decode("utf-8", "replace").partition(" ")
        name, _, sig = rest.partition(" ")
        try:
            sig = base64.b64decode(sig, validate=True)
        except binascii.Error:
            return False
        for known, digest, key in keys:
            if dash == "\u2014" and (name, sig[:4]) == (known, digest):
                if not signed(key, text + b"\n", sig[4:]):
                    return False
                good += 1
    return good > 0


# --- The repository: notes in plain text, and sealed objects ----------------------------------------------------

class Repository:
    def __init__(self, o):
        self.root, self.cluster, self.identity, self.age = o.repository, o.cluster, o.identity, o.age
        self.keys = [verifier(k) for k in o.trust]
        self.passed_over = []

    def names(self, prefix):
        """The names of objects below prefix, in order."""
        found = []
        for where, _, files in os.walk(os.path.join(self.root, prefix)):
            found += [os.path.relpath(os.path.join(where, f), self.root) for f in files]
        return sorted(found)

    def note(self, name, kind):
        """The body of a signed note, None where it cannot be believed. It is two lines and signatures:
        "holdfast <kind> v<major>", JSON."""
        with open(os.path.join(self.root, name), "rb") as f:
            data = f.read(4 << 20)
        head, _, rest = data.partition(b"\n")
        got, _, major = head.decode("utf-8", "replace").rpartition(" v")
        if self.keys and not trusted(data, self.keys):
            self.passed_over.append(f"{name}: no key of --trust signed it")
            return None
        if got == "holdfast " + kind and major.isdigit() and int(major) > 1:
            fail(f"{name} is of version {major}, and this script reads version 1: use a newer one")
        try:
            body = json.loads(rest.partition(b"\n\n")[0])
            if (got, major) != ("holdfast " + kind, "1") or body.get("cluster", self.cluster) != self.cluster:
                raise ValueError("it is no such note of this cluster")
        except (ValueError, AttributeError) as e:
            self.passed_over.append(f"{name}: {e}")
            return None
        return body

    def notes(self, prefix, ending, kind, wanted=lambda name: True):
        for name in self.names(prefix):
            if name.endswith(ending) and wanted(name):
                body = self.note(name, kind)
                if body is not None:
                    yield name, body

    def checked(self, ref):
        """The path of an object whose bytes are what ref names."""
        path, digest = below(self.root, ref["name"]), hashlib.sha256()
        try:
            with open(path, "rb") as f:
                for piece in iter(lambda: f.read(1 << 20), b""):
                    digest.update(piece)
        except OSError as e:
            fail(f"{e}: take this object from another zone")
        if os.path.getsize(path) != ref["size"] or digest.hexdigest() != ref["sha256"]:
            fail(f"{ref['name']} is not what it should be (size or SHA-256): take this object from another zone")
        return path

    @contextlib.contextmanager
    def opened(self, ref):
        """The plaintext of an object as a stream: age -d | zstd -d. Both must end well, for zstd
        alone takes a stream that was cut between two frames for a whole one."""
        age = subprocess.Popen([self.age, "-d", "-i", self.identity, self.checked(ref)], stdout=subprocess.PIPE)
        zstd = subprocess.Popen(["zstd", "-dcq"], stdin=age.stdout, stdout=subprocess.PIPE)
        age.stdout.close()
        with zstd.stdout as stream:
            yield stream
            stream.read()
        if age.wait() or zstd.wait():
            fail(f"{ref['name']} did not open: is {self.identity} the data identity?")

    def bytes(self, ref):
        with self.opened(ref) as stream:
            return stream.read()

    def frames(self, ref, scratch, wanted):
        """Yields those frames of a pack that begin at the offsets wanted in its plaintext: offset, SHA-256 of the compressed
        bytes, raw bytes. The pack's own index, a skippable frame at its end, tells where each frame of the stream begins."""
        with tempfile.TemporaryFile(dir=scratch) as f:
            if subprocess.run([self.age, "-d", "-i", self.identity, self.checked(ref)], stdout=f).returncode:
                fail(f"age could not open {ref['name']}: is {self.identity} the data identity?")
            fd, size = f.fileno(), os.fstat(f.fileno()).st_size
            count, magic = struct.unpack("<I8s", os.pread(fd, 12, max(0, size - 12)))
            if magic != b"HOLDFPK1":
                fail(f"{ref['name']} is no pack of format 1")
            index = os.pread(fd, 40 * count, size - 12 - 40 * count)
            os.lseek(fd, 0, os.SEEK_SET)
            zstd = subprocess.Popen(["zstd", "-dcq"], stdin=f, stdout=subprocess.PIPE)
            off = 0
            with zstd.stdout as stream:
                for length, size, _ in struct.iter_unpack("<II32s", index):
                    raw = stream.read(size)
                    if off in wanted:
                        yield off, hashlib.sha256(os.pread(fd, length, off)).digest(), raw
                    off += length
            if zstd.wait():
                fail(f"zstd could not read {ref['name']}")


# --- Write-ahead log: the way through the timelines, and what covers it ------------------------------------------

Leg = collections.namedtuple("Leg", "timeline start end")       # a timeline, up to where the next began
Stretch = collections.namedtuple("Stretch", "note low high")    # what the way takes of one WAL object


class Log:
    """The WAL of the snapshot's system. Each note vouches for one object: bytes [from, to) of a timeline."""

    def __init__(self, repo, snapshot):
        self.repo, self.snapshot, self.size = repo, snapshot, snapshot["wal_segment_size"]
        first = lsn(snapshot["start_lsn"]) // self.size * self.size

        def needed(name):   # .../<from>-<to>-<mac>.note, in hexadecimal
            m = re.search(r"/([0-9A-F]{16})-([0-9A-F]{16})-[0-9a-f]+\.note$", name)
            return m and (m[1] == m[2] or int(m[2], 16) > first)

        self.wal, self.small = [], {}
        for _, n in repo.notes(f"clusters/{repo.cluster}/wal", ".note", "wal", needed):
            n["from"], n["to"] = lsn(n.get("from_lsn", "0/0")), lsn(n.get("to_lsn", "0/0"))
            if n["system_id"] != snapshot["system_id"]:
                continue
            if n["to"] > n["from"]:
                self.wal.append(n)
            elif n["file"].endswith(".history"):
                self.small[n["file"]] = n
        self.pieces = {}

    def newest(self):
        """The timeline of the newest epoch's WAL."""
        own = (self.snapshot["epoch"], self.snapshot["timeline"])
        return max([own] + [(n["epoch"], n["timeline"]) for n in self.wal])[1]

    def path(self, timeline):
        """The legs from timeline 1 to the end of timeline, by its history file."""
        legs, start = [], 0
        if timeline > 1:
            name = "%08X.history" % timeline
            if name not in self.small:
                fail(f"the WAL holds no {name}, without which the way to timeline {timeline} is not known; --timeline N takes another")
            for line in self.raw(self.small[name]).decode().splitlines():
                fields = line.split()
                if fields and not line.lstrip().startswith("#"):
                    legs.append(Leg(int(fields[0]), start, lsn(fields[1])))
                    start = legs[-1].end
        return legs + [Leg(timeline, start, ENDLESS)]

    def follow(self, legs):
        """Sorts the WAL by the legs. A timeline's first segment begins with its parent's bytes, so it stands for the parent too."""
        self.legs = legs
        self.pieces = {leg.timeline: [n for n in self.wal if n["timeline"] == leg.timeline] for leg in legs}
        for parent, leg in zip(legs[-2::-1], legs[:0:-1]):
            self.pieces[parent.timeline] += [n for n in self.pieces[leg.timeline] if n["from"] < leg.start]

    def cover(self, timeline, at, end):
        """Objects that hold [at, end) of timeline without a gap, and how far they come."""
        used = []
        while at < end:
            best = max((n for n in self.pieces[timeline] if n["from"] <= at < n["to"]),
                       key=lambda n: (min(n["to"], end), n["epoch"], -n["from"]), default=None)
            if best is None:
                break
            used.append(Stretch(best, at, min(best["to"], end)))
            at = used[-1].high
        return used, at

    def walk(self):
        """From the snapshot's start as far as there is no gap: what is used, where it ends, what lies behind a gap."""
        at, used = lsn(self.snapshot["start_lsn"]), []
        for leg in self.legs[self.place():]:
            more, at = self.cover(leg.timeline, at, leg.end)
            used += more
            if at < leg.end:
                break
        beyond = [n["to"] for leg in self.legs[self.place():] for n in self.pieces[leg.timeline] if min(n["to"], leg.end) > at and n["from"] < leg.end]
        return used, at, max(beyond, default=0)

    def place(self):
        """The snapshot's leg."""
        return next((i for i, leg in enumerate(self.legs) if leg.timeline == self.snapshot["timeline"]
                     and leg.start <= lsn(self.snapshot["stop_lsn"]) <= leg.end), None)

    def raw(self, n):
        """The plaintext of a WAL object: a segment, a slice of one, a history file."""
        data = self.repo.bytes(n["object"])
        if len(data) != n["raw_bytes"] or hashlib.sha256(data).hexdigest() != n["raw_sha256"]:
            fail(f"{n['object']['name']} opens to something else than its note names")
        return data

    def commits(self, n):
        """(start, end, time) of each commit and abort that ends in an object, from its index. The index holds five
        integers for each: start less the start before, length, transaction, microseconds less those before, abort."""
        if "index" not in n:
            fail(f"the WAL {n['file']} could not be read when it was archived, so no moment within it is known: restore without --time")
        index = json.loads(self.repo.bytes(n["index"]))
        flat, start, at = index.get("commits") or [], 0, 0
        for i in range(0, len(flat), 5):
            start, at = start + flat[i], at + flat[i + 3]
            yield start, start + flat[i + 1], at

    def moment(self, used, target):
        """Where the first transaction begins its end that ended after target, as recovery_target_time would have it; None
        where the WAL has none but is known to reach until then."""
        stop, known = lsn(self.snapshot["stop_lsn"]), micros(self.snapshot["finished_at"])
        for s in used:
            n = s.note
            if "index" in n and micros(n.get("last_time")) <= target:
                known = max(known, micros(n.get("last_time")), micros(n.get("server_time")))
                continue
            for start, end, at in sorted(self.commits(n)):
                if max(s.low, stop) < end <= s.high and at > target:
                    return start
            known = max(known, micros(n.get("server_time")))
        if known < target:
            fail(f"the WAL holds nothing of that time yet; its newest moment is {moment(known)}")
        return None

    def write(self, to, end):
        """Writes the segments up to end, and all history files. A segment of several timelines carries the name of the newest."""
        for name, n in self.small.items():
            create(os.path.join(to, name), self.raw(n))
        at = lsn(self.snapshot["start_lsn"]) // self.size * self.size
        while at < end:
            stop, segment, reached = min(at + self.size, end), bytearray(self.size), at
            top = max(i for i, leg in enumerate(self.legs) if leg.start < stop)
            for i, leg in enumerate(self.legs[:top + 1]):
                used, got = self.cover(leg.timeline, reached, stop if i == top else min(leg.end, stop))
                if got < min(leg.end, stop):
                    fail(f"WAL of timeline {leg.timeline} is missing at {show(got)}")
                for s in used:
                    data = self.raw(s.note)
                    segment[s.low - at:s.high - at] = data[s.low - s.note["from"]:s.high - s.note["from"]]
                reached = max(reached, got)
            number, per = at // self.size, (1 << 32) // self.size
            create(os.path.join(to, "%08X%08X%08X" % (self.legs[top].timeline, number // per, number % per)), segment)
            at += self.size


def create(path, data=b"", mode=0o600):
    """Writes a file that must not exist yet."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as f:
        f.write(data)


# --- The choice: notes, forgotten marks, WAL ----------------------------------------------------------------------

# end: where the WAL ends; stop: where replay must halt before that, or None; last: where the last whole record ends.
Choice = collections.namedtuple("Choice", "snapshot log end stop last")


def choose(repo, o):
    """The newest snapshot from which the WAL reaches the target, those with bad pages last."""
    forgotten = {i for _, m in repo.notes(f"forgotten/{repo.cluster}", ".note", "forgotten") for i in m.get("snapshots") or []}
    known = [s for name, s in repo.notes(f"clusters/{repo.cluster}/snapshots", "/snapshot.note", "snapshot")
           if s["kind"] == "physical" and name.split("/")[-2] == s["id"]]
    if o.snapshot:
        fit = [s for s in known if s["id"] == o.snapshot]
    else:
        fit = [s for s in known if s["id"] not in forgotten and (not o.time or micros(s["finished_at"]) <= micros(o.time))]
    if not fit:
        fail(f"no such snapshot of {repo.cluster}; there are: {', '.join(s['id'] for s in known) or 'none'}{because(repo)}")
    fit.sort(key=lambda s: (not s["suspect"], s["epoch"], lsn(s["stop_lsn"])), reverse=True)
    why = []
    for s in fit:
        log = Log(repo, s)
        log.follow(log.path(o.timeline or log.newest()))
        if log.place() is None and o.snapshot and not o.timeline:
            log.follow(log.path(s["timeline"]))
        if log.place() is None:
            why.append(f"{s['id']} does not lie on the way to timeline {log.legs[-1].timeline}")
            continue
        used, end, beyond = log.walk()
        if end < lsn(s["stop_lsn"]):
            why.append(f"{s['id']} needs WAL up to {s['stop_lsn']}, which ends at {show(end)}")
            continue
        if s["id"] in forgotten or s["suspect"]:
            say(f"WARNING: snapshot {s['id']} {'has bad pages' if s['suspect'] else 'is marked for removal'}")
        return target(s, log, used, end, beyond, o)
    fail("; ".join(why) + because(repo))


def because(repo):
    return "".join("\n  passed over " + p for p in repo.passed_over[:20])


def target(s, log, used, end, beyond, o):
    """Resolves the target to a position and ends the way there: a copy that halts before a timeline was left belongs to it."""
    stop = log.moment(used, micros(o.time)) if o.time else None
    if stop is None and beyond and not o.accept_gap:
        fail(f"WAL is missing behind {show(end)}, and there is more of it up to {show(beyond)}: bring it from another zone, "
             "name an earlier --time, or say --accept-gap to stop before the gap")
    i = next(i for i, leg in enumerate(log.legs) if i >= log.place() and (stop or end) <= leg.end)
    end = min(end, log.legs[i].end)
    log.legs = log.legs[:i] + [log.legs[i]._replace(end=ENDLESS)]
    last = max([lsn(s["stop_lsn"])] + [lsn(u.note.get("last_record_end", "0/0")) for u in used if u.high == u.note["to"] <= end])
    return Choice(s, log, end, stop, last)


# --- The files: manifest, page maps, packs ------------------------------------------------------------------------

class Manifest:
    """JSON lines: a header, packs, maps, files sorted by path, and an end line that counts them."""

    def __init__(self, repo, ref):
        self.head, self.packs, self.maps, self.files, end = None, [], [], [], None
        with repo.opened(ref) as lines:
            for line in lines:
                if self.head is None:
                    self.head = json.loads(line)
                    if self.head["format"] != 1:
                        fail(f"{ref['name']} is of format {self.head['format']}, and this script reads format 1: use a newer one")
                    continue
                for kind, e in json.loads(line).items():
                    if kind == "end":
                        end = e
                    else:
                        {"pack": self.packs, "map": self.maps, "file": self.files}.get(kind, []).append(e)
        if end is None or (end["packs"], end.get("maps", 0), end["files"]) != (len(self.packs), len(self.maps), len(self.files)):
            fail(f"{ref['name']} was cut off")


Frame = collections.namedtuple("Frame", "pack off length raw sha256")


def leaf(data, at):
    """Reads a leaf at offset at: blocks, frames, runs (first block, count, frame, offset in its raw bytes), where it ends.
    Digests of the blocks follow; they serve the next snapshot, not a restore."""
    blocks, nframes, nruns = struct.unpack_from("<HHH", data, at)
    at += 6
    frames = [Frame(*struct.unpack_from("<IQII32s", data, at + 52 * i)) for i in range(nframes)]
    at += 52 * nframes
    runs = [struct.unpack_from("<HHHI", data, at + 10 * i) for i in range(nruns)]
    return blocks, frames, runs, at + 10 * nruns + (8 * blocks if nruns else 0)


class Maps:
    """Page maps: "HOLDFMP1", a table of pack names, leaves end to end."""

    def __init__(self, repo, manifest):
        self.repo, self.maps, self.open = repo, manifest.maps, collections.OrderedDict()
        self.numbers = {p["ref"]["name"]: p["n"] for p in manifest.packs}

    def read(self, n):
        """The leaves of map n, and its table of packs as the manifest numbers them. A few maps are kept open."""
        if n not in self.open:
            plain = self.repo.bytes(self.maps[n]["ref"])
            if plain[:8] != b"HOLDFMP1":
                fail(f"{self.maps[n]['ref']['name']} is no map object of format 1")
            count, at, table = struct.unpack_from("<I", plain, 8)[0], 12, []
            for _ in range(count):
                size, = struct.unpack_from("<H", plain, at)
                table.append(self.numbers.get(plain[at + 2:at + 2 + size].decode()))
                at += 2 + size
            self.open[n] = plain[at:], table
            if len(self.open) > 8:
                self.open.popitem(last=False)
        self.open.move_to_end(n)
        return self.open[n]

    def runs(self, file):
        """Yields (pack, frame, offset in its raw bytes, offset in the file, length) for each stretch of file that is stored;
        what is not yielded is zeros."""
        at = 0
        for n, off, length, count in file.get("leaves") or []:
            leaves, table = self.read(n)
            end = off + length
            for _ in range(count):
                blocks, frames, runs, off = leaf(leaves, off)
                for first, many, frame, within in runs:
                    if frame != ZEROS:
                        to = (at + first) * BLOCK
                        yield table[frames[frame].pack], frames[frame], within, to, min(many * BLOCK, file["size"] - to)
                at += blocks
            if off != end:
                fail(f"the page map of {file['path']} is not {length} bytes long")
        if at != -(-file["size"] // BLOCK):
            fail(f"the page map of {file['path']} has {at} blocks for {file['size']} bytes")


class Wanted:
    """What each pack must give, in a scratch file for each: memory stays small whatever the size of the cluster."""

    RECORD = struct.Struct("<QI32sIIQI")   # frame: offset, raw size, SHA-256; offset in it; file; offset in that; length

    def __init__(self, scratch):
        self.scratch, self.kept, self.size = scratch, {}, 0

    def add(self, pack, *record):
        self.kept.setdefault(pack, bytearray()).extend(self.RECORD.pack(*record))
        self.size += self.RECORD.size
        if self.size > 64 << 20:
            self.spill()

    def spill(self):
        for pack, records in self.kept.items():
            with open(os.path.join(self.scratch, str(pack)), "ab") as f:
                f.write(records)
        self.kept, self.size = {}, 0

    def of(self, pack):
        """Offset of a frame -> (raw size, SHA-256, offset in it, file, offset in that, length) of all that is wanted of it."""
        found, path = {}, os.path.join(self.scratch, str(pack))
        if os.path.exists(path):
            with open(path, "rb") as f:
                for off, *rest in self.RECORD.iter_unpack(f.read()):
                    found.setdefault(off, []).append(rest)
        return found


class Tree:
    """The data directory in the making."""

    def __init__(self, o, manifest):
        self.root, self.manifest = os.path.abspath(o.to), manifest
        self.outside = self.root + ".outside"
        given = dict(t.split("=", 1) for t in o.tablespace if "=" in t)
        oids = ["%d" % t["oid"] for t in manifest.head.get("tablespaces") or [] if not t.get("in_place")]
        self.spaces = {oid: os.path.abspath(given.pop(oid, f"{self.root}.tablespaces/{oid}")) for oid in oids}
        if given or any("=" not in t for t in o.tablespace):
            fail(f"--tablespace: want OID=DIR, and OID one of {', '.join(self.spaces) or 'none: the snapshot has no tablespaces'}")
        for where in [self.root, self.outside, *self.spaces.values()]:
            if os.path.lexists(where) and (not os.path.isdir(where) or os.listdir(where)):
                fail(f"{where} is not an empty directory: nothing is overwritten, give another")
        free = shutil.disk_usage(next(p for p in parents(self.root) if os.path.isdir(p))).free
        need = sum(f["size"] for f in manifest.files)
        if free < need:
            fail(f"{self.root}: {free} bytes are free and the files alone need {need}")

    def path(self, f):
        if f.get("outside"):
            return below(self.outside, f["path"].lstrip("/"))
        return below(self.root, f["path"]) + (".last" if f["path"] == CONTROL else "")

    def make(self):
        """Directories, links of tablespaces, and every file at its size, all zeros."""
        os.makedirs(self.root, 0o700, exist_ok=True)
        os.chmod(self.root, 0o700)
        for d in ("pg_tblspc", "pg_wal", "pg_wal/archive_status"):
            os.makedirs(os.path.join(self.root, d), 0o700, exist_ok=True)
        for oid, where in self.spaces.items():
            os.makedirs(where, 0o700, exist_ok=True)
            os.chmod(where, 0o700)
            os.symlink(where, os.path.join(self.root, "pg_tblspc", oid))
        for d in self.manifest.head["dirs"]:
            os.makedirs(below(self.root, d["path"]), d["mode"], exist_ok=True)
        for f in self.manifest.files:
            os.makedirs(os.path.dirname(self.path(f)), 0o700, exist_ok=True)
            create(self.path(f))
            os.truncate(self.path(f), f["size"])

    def fill(self, repo):
        """Reads each pack once and writes what it holds of each file."""
        scratch = tempfile.mkdtemp(prefix="break-glass-", dir=os.path.dirname(self.root))
        try:
            maps, wanted = Maps(repo, self.manifest), Wanted(scratch)
            for i, f in enumerate(self.manifest.files):
                for pack, frame, within, to, length in maps.runs(f):
                    if pack is None:
                        fail(f"the page map of {f['path']} names a pack that the manifest does not")
                    wanted.add(pack, frame.off, frame.raw, frame.sha256, within, i, to, length)
            wanted.spill()
            for p in self.manifest.packs:
                self.unpack(repo, p, wanted.of(p["n"]), scratch)
                say(f"pack {p['n'] + 1} of {len(self.manifest.packs)}")
        finally:
            shutil.rmtree(scratch)

    def unpack(self, repo, pack, wanted, scratch):
        for off, digest, raw in repo.frames(pack["ref"], scratch, set(wanted)) if wanted else ():
            for size, sha256, within, file, to, length in wanted.pop(off):
                if (size, sha256) != (len(raw), digest) or within + length > size:
                    fail(f"the frame at {off} of pack {pack['n']} is not what the page map names")
                with open(self.path(self.manifest.files[file]), "r+b") as f:
                    f.seek(to)
                    f.write(raw[within:within + length])
        if wanted:
            fail(f"pack {pack['n']} lacks frames that the page maps name")

    def configure(self, choice):
        """The labels, harmless settings, configuration from outside; pg_control, without which nothing starts, last."""
        create(os.path.join(self.root, "backup_label"), base64.b64decode(self.manifest.head["label"]))
        if self.spaces:   # recovery makes the links anew from this
            escaped = {oid: d.replace("\\", "\\\\").replace("\n", "\\\n") for oid, d in self.spaces.items()}
            create(os.path.join(self.root, "tablespace_map"), "".join(f"{oid} {d}\n" for oid, d in escaped.items()).encode())
        create(os.path.join(self.root, "standby.signal"))
        self.bring_outside()
        self.settings(choice)
        for d in self.manifest.head["dirs"]:
            os.chmod(below(self.root, d["path"]), d["mode"])
        for f in self.manifest.files:
            os.chmod(self.path(f), f["mode"])
        os.sync()
        for f in self.manifest.files:
            if f["path"] == CONTROL:
                os.rename(self.path(f), below(self.root, f["path"]))

    def bring_outside(self):
        """Debian keeps the configuration elsewhere: what PostgreSQL itself reads of it goes into the data directory."""
        used = self.manifest.head["facts"].get("config_files") or []
        for f in (f for f in self.manifest.files if f.get("outside")):
            where, name = os.path.split(f["path"])
            if os.path.basename(where) == "conf.d":
                os.makedirs(os.path.join(self.root, "conf.d"), 0o700, exist_ok=True)
                name = "conf.d/" + name
            elif name not in ("postgresql.conf", "pg_hba.conf", "pg_ident.conf"):
                continue
            to = os.path.join(self.root, name)
            if f["path"] in used or not os.path.exists(to):
                shutil.copyfile(self.path(f), to)

    def settings(self, choice):
        """A copy that archives nowhere, follows nobody, listens to nobody, and never promotes by itself."""
        places = r"data_directory|hba_file|ident_file|external_pid_file|config_file"
        harming = (r"recovery_target\w*|restore_command|archive_mode|archive_command|archive_library|archive_cleanup_command|"
                   r"recovery_end_command|primary_conninfo|primary_slot_name|promote_trigger_file|synchronous_standby_names|")
        for name, what in (("postgresql.conf", places), ("postgresql.auto.conf", harming + places)):
            path, lines = os.path.join(self.root, name), b""
            if os.path.exists(path):
                with open(path, "rb") as f:
                    lines = re.sub(rb"(?im)^(\s*(?:" + what.encode() + rb")\s*[= ])", rb"#holdfast# \1", f.read())
            with open(path, "wb") as f:
                f.write(lines + (b"\n" if lines[-1:] not in (b"", b"\n") else b""))
        ours = {
            "archive_mode": "off", "restore_command": "", "primary_conninfo": "", "synchronous_standby_names": "", "listen_addresses": "", "hot_standby": "on",
            "max_logical_replication_workers": "0", "cron.launch_active_jobs": "off",
            "recovery_target_timeline": str(choice.log.legs[-1].timeline),
        }
        if any(t.get("in_place") for t in self.manifest.head.get("tablespaces") or []):
            ours["allow_in_place_tablespaces"] = "on"   # recovery wants links alone otherwise
        if choice.stop:
            ours.update(recovery_target_lsn=show(choice.stop), recovery_target_inclusive="off", recovery_target_action="pause")
        with open(os.path.join(self.root, "postgresql.auto.conf"), "a") as f:
            f.write("# Set by break-glass.py: remove these lines to put the copy into production.\n")
            f.writelines(f"{k} = '{v}'\n" for k, v in sorted(ours.items()))


def parents(path):
    while True:
        yield path
        path = os.path.dirname(path)


# --- Deleted projects -----------------------------------------------------------------------------------------------

def deleted(repo, choice=None):
    """The tombstones that a restored copy must be cleared of: all, but those whose project live was seen without at a
    moment that the restored history holds."""
    for name, t in repo.notes("tombstones", "/tombstone.note", "tombstone"):
        seen = os.path.join(os.path.dirname(name), "absent.note")
        a = repo.note(seen, "absent") if os.path.exists(os.path.join(repo.root, seen)) else None
        if choice and a and a["system_id"] == choice.snapshot["system_id"] and lsn(a["lsn"]) <= (choice.stop or choice.last) and any(
                leg.timeline == a["timeline"] and leg.start <= lsn(a["lsn"]) <= leg.end for leg in choice.log.legs):
            continue
        yield t


def match(repo, lines):
    """Prints which of the keys in lines are of deleted projects: the tombstones hold them under a keyed digest only."""
    stones, keys = list(deleted(repo)), {}
    for t in stones:
        epoch = t["digest_epoch"]
        if epoch not in keys:
            path = os.path.join(repo.root, "keys/digest/%08d.age" % epoch)
            with open(path, "rb") as f:
                data = f.read()
            ref = {"name": "keys/digest/%08d.age" % epoch, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            keys[epoch] = bytes.fromhex(json.loads(repo.bytes(ref))["key"])
    for key in (line.rstrip("\n") for line in lines):
        for t in stones:
            parts = ["holdfast project key v1", repo.cluster, t["layout"], t["database"], t["root"], t["key"], key]
            text = b"".join(struct.pack(">Q", len(p.encode())) + p.encode() for p in parts)
            if hmac.new(keys[t["digest_epoch"]], text, hashlib.sha256).hexdigest()[:32] == t["key_mac"]:
                print(key)
                break


# --- Putting it together ----------------------------------------------------------------------------------------------

def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--repository", required=True, metavar="DIR", help="a copy of one zone: holdfast.json lies in it")
    p.add_argument("--cluster", required=True, metavar="NAME")
    p.add_argument("--identity", required=True, metavar="FILE", help="the data identity, as age -i takes it")
    p.add_argument("--to", metavar="DIR", help="the data directory to make; absent or empty")
    p.add_argument("--snapshot", metavar="ID", help="this snapshot, not the newest that fits")
    p.add_argument("--time", metavar="T", help="as of this moment, as 2026-01-31T12:00:00Z; the end of the WAL without")
    p.add_argument("--timeline", type=int, metavar="N", help="along this timeline, not the newest")
    p.add_argument("--tablespace", action="append", default=[], metavar="OID=DIR", help="where a tablespace goes, instead of TO.tablespaces/OID")
    p.add_argument("--trust", action="append", default=[], metavar="VKEY", help="believe only notes that this key signed; may be repeated")
    p.add_argument("--age", default="age", metavar="PATH", help="the age program")
    p.add_argument("--accept-gap", action="store_true", help="stop before a gap in the WAL")
    p.add_argument("--deleted-among", metavar="FILE", help="restore nothing: print which of the keys in FILE (- for standard input), one a line, are of deleted projects")
    o = p.parse_args()
    if (o.to is None) == (o.deleted_among is None):
        p.error("want either --to or --deleted-among")
    try:
        micros(o.time)
    except ValueError as e:
        p.error(f"--time {e}")
    return o


def programs(o):
    """Says what is missing before anything is done."""
    for name in (o.age, "zstd"):
        if shutil.which(name) is None:
            fail(f"there is no program {name}: install it, or have --age name age's")
    try:
        with open(o.identity, encoding="utf-8", errors="replace") as f:
            text = f.read()
    except OSError as e:
        fail(f"--identity: {e}")
    if "BEGIN AGE ENCRYPTED FILE" in text or text.startswith("age-encryption.org/"):
        fail(f"{o.identity} is sealed itself: open it once with `age -d {o.identity} > identity` (mode 0600) and give that")
    found = subprocess.run([o.age, "--version"], capture_output=True, text=True).stdout
    version = re.match(r"v?(\d+)\.(\d+)", found.strip())
    if "AGE-SECRET-KEY-PQ-1" in text and version and (int(version[1]), int(version[2])) < (1, 3):
        fail(f"{o.identity} is a post-quantum key (its recipient begins with age1pq1), and {shutil.which(o.age)} is age {found.strip()}, which cannot "
             "open what was sealed to it: bring age 1.3 or newer (one static program: https://github.com/FiloSottile/age) and name it with --age")


def whole(repo, snapshot):
    """objects.list is what the note names, and each object that it names is there, in its size. Its bytes are checked when they are read."""
    count = 0
    with open(repo.checked(snapshot["objects"]), encoding="utf-8") as f:
        for line in f:
            _, size, name = line.rstrip("\n").split(" ", 2)
            path, count = below(repo.root, name), count + 1
            if not os.path.isfile(path) or os.path.getsize(path) != int(size):
                fail(f"{name} is missing or not of {size} bytes: take it from another zone")
    return count


def report(repo, tree, choice):
    s = choice.snapshot
    owner = f"  chown -R postgres: {' '.join(sorted({tree.root, *tree.spaces.values(), *(os.path.dirname(d) for d in tree.spaces.values() if d.startswith(tree.root))}))}\n" if os.geteuid() == 0 else ""
    say(f"\nRestored snapshot {s['id']} of {repo.cluster} (PostgreSQL {s['major']}) into {tree.root}.\n{owner}"
        f"  pg_ctl -D {tree.root} -l {tree.root}.log start        # PostgreSQL {s['major']}, as its own user\n"
        "It replays as a standby, and never promotes by itself. When\n"
        "  SELECT pg_last_wal_replay_lsn();\n"
        + (f"has come to {show(choice.stop)} (the last transaction before it is the last of the moment that you asked for) and\n"
           "pg_get_wal_replay_pause_state() says paused," if choice.stop else
           f"says {show(choice.last)} or more,") +
        " it is complete: SELECT pg_promote().\nIf it stays lower, WAL is missing: do not promote.")
    if os.path.isdir(tree.outside):
        say(f"Configuration from outside the data directory lies in {tree.outside}; postgresql.conf, pg_hba.conf and pg_ident.conf of it were put into {tree.root}.")
    for p in repo.passed_over[:20]:
        say("passed over " + p)
    say("Signatures: verified with the keys of --trust." if repo.keys else "ORIGIN NOT VERIFIED: no --trust VKEY was given; whoever could write to this copy could have made it.")
    say("FRESHNESS NOT VERIFIED: whether another zone holds newer snapshots or WAL cannot be seen from here.")


def warn_of_deleted(stones):
    if not stones:
        return say("No project was deleted that this copy can hold, as far as this zone tells.")
    bar = "!" * 96
    say(f"\n{bar}\nDELETED PROJECTS ARE BACK IN THIS COPY. DELETE THEM BEFORE ANYONE CONNECTS.\nlisten_addresses is empty until then: keep it so.\n")
    for t in stones:
        rows = ", ".join(f"{c['rows']} of {c['table']}" for c in t.get("counts") or [])
        oid = f" with OID {t['oid']}, whatever it is named here" if t.get("oid") else ""
        where = {"schema": f"a SCHEMA of DATABASE {t['database']}{oid}", "database": f"a DATABASE{oid}"}.get(
            t["layout"], f"DATABASE {t['database']}, TABLE {t['root']}, COLUMN {t['key']}")
        say(f"  TOMBSTONE {t['id']}, asked for at {t['requested_at']}\n    {where}; rows then: {rows or 'not counted'}")
    say("\nWhich these are:")
    for ask in sorted({ask_for(t) for t in stones}):
        say(f"  {ask} | break-glass.py … --deleted-among -")
    say(bar)


def ask_for(t):
    """A command that prints the keys of all projects that the copy holds where a tombstone's was."""
    if t["layout"] == "schema":
        return f"psql -Atc 'SELECT nspname FROM pg_namespace' {t['database']}"
    if t["layout"] == "database":
        return "psql -Atc 'SELECT datname FROM pg_database' postgres"
    return f"psql -Atc 'SELECT {t['key']}::text FROM {t['root']}' {t['database']}"


def main():
    os.umask(0o077)
    o = arguments()
    programs(o)
    repo = Repository(o)
    if not os.path.isdir(os.path.join(repo.root, "clusters", repo.cluster)):
        fail(f"{repo.root} holds no clusters/{repo.cluster}: --repository wants the directory that holds holdfast.json")
    if o.deleted_among:
        return match(repo, sys.stdin if o.deleted_among == "-" else open(o.deleted_among, encoding="utf-8"))
    choice = choose(repo, o)
    say(f"snapshot {choice.snapshot['id']}, WAL to {show(choice.end)} of timeline {choice.log.legs[-1].timeline}; {whole(repo, choice.snapshot)} objects")
    tree = Tree(o, Manifest(repo, choice.snapshot["manifest"]))
    tree.make()
    tree.fill(repo)
    choice.log.write(os.path.join(tree.root, "pg_wal"), choice.end)
    tree.configure(choice)
    os.sync()
    report(repo, tree, choice)
    warn_of_deleted(list(deleted(repo, choice)))


if __name__ == "__main__":
    try:
        main()
    except OSError as e:
        fail(str(e))
    except (IndexError, KeyError, TypeError, ValueError, struct.error) as e:
        fail(f"an object holds what format 1 does not allow ({e!r}): take the snapshot from another zone, or an older one with --snapshot")
