"""Log-like text for the corpus, made by a seeded generator: no registry has much of it.

A document is what one machine writes: a few kinds of lines of one format, whose names, addresses and numbers come from
pools of its own, so that they come again as they do in a log. The messages are those of well-known programs.
"""

import base64
import json
import random
import re
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta

USERS = re.findall(
    r"\S+",
    "anna ben carla deploy eva frank git hugo ines jenkins karim lena marco nina omar pavel root sofia tom www-data",
)
WORDS = re.findall(
    r"\w+",
    "account alert api archive asset auth backup batch billing blob bucket buffer cache cart catalog channel checkout "
    "client cluster config consumer core cron customer daemon data device digest disk document email event export feed "
    "file filter frontend gateway graph group handler health image import index ingest inventory invoice job key label "
    "ledger lock mail media message metric mobile model monitor network node notify offer order parser partner payment "
    "peer pipeline policy pool price product profile project proxy queue quota rate record region registry relay "
    "replica report request resource router rule scheduler schema search secret sensor server service session shard "
    "shipment signal snapshot source storage store stream sync table task tenant ticket token topic trace tracker "
    "upload user vault video view volume web worker zone",
)

PROGRAMS: dict[str, list[str]] = {
    "sshd[{pid}]": [
        "Accepted publickey for {user} from {ip} port {port} ssh2: ED25519 SHA256:{base64}",
        "Failed password for invalid user {user} from {ip} port {port} ssh2",
        "Failed password for root from {ip} port {port} ssh2",
        "Connection closed by authenticating user {user} {ip} port {port} [preauth]",
        "pam_unix(sshd:session): session opened for user {user}(uid={n}) by (uid=0)",
        "pam_unix(sshd:session): session closed for user {user}",
        "Received disconnect from {ip} port {port}:11: disconnected by user",
        "Disconnected from user {user} {ip} port {port}",
        "error: kex_exchange_identification: Connection closed by remote host",
        "Invalid user {user} from {ip} port {port}",
    ],
    "CRON[{pid}]": [
        "(root) CMD (   cd / && run-parts --report /etc/cron.hourly)",
        "({user}) CMD (/usr/local/bin/{word}-{word} --quiet >/dev/null 2>&1)",
        "pam_unix(cron:session): session opened for user root(uid=0) by (uid=0)",
        "pam_unix(cron:session): session closed for user root",
    ],
    "systemd[1]": [
        "Starting {word}-{word}.service - {Word} {word} daemon...",
        "Started {word}-{word}.service - {Word} {word} daemon.",
        "{word}-{word}.service: Main process exited, code=exited, status={small}/FAILURE",
        "{word}-{word}.service: Failed with result 'exit-code'.",
        "{word}-{word}.service: Scheduled restart job, restart counter is at {small}.",
        "{word}-{word}.service: Consumed {small}.{n}s CPU time.",
        "Stopping {word}-{word}.service - {Word} {word} daemon...",
        "logrotate.service: Deactivated successfully.",
        "Finished apt-daily.service - Daily apt download activities.",
    ],
    "kernel": [
        "[{n}.{micro}] usb {small}-{small}: new high-speed USB device number {small} using xhci_hcd",
        "[{n}.{micro}] EXT4-fs (sda{small}): mounted filesystem with ordered data mode. Quota mode: none.",
        "[{n}.{micro}] [UFW BLOCK] IN=eth0 OUT= MAC={mac} SRC={ip} DST={ip} LEN={n} TOS=0x00 "
        "PREC=0x00 TTL={small} ID={port} PROTO=TCP SPT={port} DPT={port} WINDOW={n} RES=0x00 SYN URGP=0",
        "[{n}.{micro}] Out of memory: Killed process {pid} ({word}) total-vm:{port}kB, anon-rss:{port}kB, file-rss:0kB",
        "[{n}.{micro}] e1000e {hex2}:00:1f.6 eno1: NIC Link is Up 1000 Mbps Full Duplex, Flow Control: Rx/Tx",
        "[{n}.{micro}] device veth{hex8} entered promiscuous mode",
        "[{n}.{micro}] br-{hex8}: port {small}(veth{hex8}) entered blocking state",
    ],
    "postfix/smtpd[{pid}]": [
        "connect from {host}.example.net[{ip}]",
        "disconnect from {host}.example.net[{ip}] ehlo=1 mail=1 rcpt=1 data=1 quit=1 commands=5",
        "NOQUEUE: reject: RCPT from unknown[{ip}]: 554 5.7.1 <{user}@example.com>: Relay access denied; "
        "proto=ESMTP helo=<{word}>",
        "{HEX}: client={host}.example.net[{ip}]",
        "lost connection after AUTH from unknown[{ip}]",
    ],
    "dhclient[{pid}]": [
        "DHCPREQUEST for {ip} on eth0 to {ip} port 67",
        "DHCPACK of {ip} from {ip}",
        "bound to {ip} -- renewal in {n} seconds.",
    ],
    "NetworkManager[{pid}]": [
        "<info>  [{epoch}.{micro}] device (wlp3s0): state change: activated -> deactivating (reason 'user-requested')",
        "<info>  [{epoch}.{micro}] dhcp4 (wlp3s0): state changed new lease, address={ip}",
        "<warn>  [{epoch}.{micro}] device (wlp3s0): Activation: failed for connection '{word}'",
    ],
    "dockerd[{pid}]": [
        'time="{iso}" level=info msg="ignoring event" container={hex64} module=libcontainerd topic=/tasks/delete',
        'time="{iso}" level=warning msg="cleaning up after shim disconnected" id={hex64} namespace=moby',
        'time="{iso}" level=error msg="Handler for POST /v1.43/containers/{hex12}/start returned error: driver failed"',
    ],
}
APPLICATION = [
    "Starting {Word}{Word} on port {port}",
    "Connected to {word} at {ip}:{port}",
    "Processed {n} {word}s in {n} ms",
    "Request {uuid} completed with status {status} in {n}ms",
    "User {user} logged in from {ip}",
    "Cache miss for key {word}:{n}, loading from database",
    "Retrying {word} request to {host} (attempt {small} of 5): connection timed out after {n}ms",
    "Failed to load {word} {n}: no such file or directory: /var/lib/{word}/{word}-{n}.json",
    "Slow query detected ({n} ms): SELECT * FROM {word}s WHERE {word}_id = {n} ORDER BY created_at DESC LIMIT {small}",
    "Scheduled job '{word}_{word}' finished successfully, next run in {small} minutes",
    "Queue {word}.{word} has {n} pending messages",
    "Consumer group {word}-{word} rebalanced: {small} partitions assigned",
    "Unable to parse {word} message: unexpected end of input at offset {n}",
    "Heap usage {small}% ({n} MB of {n} MB), triggering garbage collection",
    "Health check for {host} failed: HTTP {status}",
    "Health check for {host} passed",
    "Created {word} {uuid} for tenant {word}",
    "Deleted {n} expired {word}s",
    "Rate limit exceeded for client {ip}: {n} requests per minute",
    "Configuration reloaded from /etc/{word}/{word}.yaml",
    "Shutting down gracefully, waiting for {small} active connections",
    "Token for {user} expired at {iso}",
    "Uploaded {word}/{hex12}.parquet ({n} rows, {n} KiB)",
    "Checksum mismatch in block {n} of /data/{word}/{hex8}: expected {hex8}, got {hex8}",
]
POSTGRES = [
    "LOG:  checkpoint starting: time",
    "LOG:  checkpoint complete: wrote {n} buffers (0.{small}%); 0 WAL file(s) added, 0 removed, "
    "1 recycled; write={n}.{small} s, sync=0.00{small} s",
    "LOG:  duration: {n}.{small} ms  statement: SELECT count(*) FROM {word}s WHERE {word}_id = {n}",
    'ERROR:  duplicate key value violates unique constraint "{word}s_pkey"\n\tDETAIL:  Key (id)=({n}) already exists.',
    'ERROR:  relation "{word}_{word}" does not exist at character {small}',
    'FATAL:  password authentication failed for user "{user}"',
    'LOG:  automatic vacuum of table "{word}.public.{word}s": index scans: {small}',
    "LOG:  connection received: host={ip} port={port}",
    "LOG:  could not receive data from client: Connection reset by peer",
]
BUILD = [
    "[{small}/{n}] Building CXX object src/CMakeFiles/{word}.dir/{word}_{word}.cpp.o",
    "[{small}/{n}] Linking CXX shared library lib{word}.so",
    "gcc -DHAVE_CONFIG_H -I. -I.. -g -O2 -Wall -MT {word}.o -MD -MP -c -o {word}.o {word}.c",
    "{word}.c:{n}:{small}: warning: unused variable '{word}' [-Wunused-variable]",
    "   Compiling {word}-{word} v{small}.{small}.{small}",
    "Collecting {word}-{word}>={small}.{small}\n"
    "  Downloading {word}_{word}-{small}.{small}.{small}-py3-none-any.whl ({n} kB)",
    "npm WARN deprecated {word}-{word}@{small}.{small}.{small}: This package is no longer maintained",
    "added {n} packages, and audited {n} packages in {small}s",
    "tests/test_{word}.py::test_{word}_{word} PASSED                                          [ {small}%]",
    "tests/test_{word}.py::test_{word}_{word} FAILED                                          [ {small}%]",
    "ok   example.org/{word}/{word}  0.{n}s",
    "--- FAIL: Test{Word}{Word} (0.{small}s)\n    {word}_test.go:{n}: got {n}, want {n}",
    "Get:{small} http://deb.example.org/debian stable/main amd64 lib{word}{small} amd64 {small}.{small}-1 [{n} kB]",
    "Unpacking lib{word}{small}:amd64 ({small}.{small}-1) ...",
    "Setting up lib{word}{small}:amd64 ({small}.{small}-1) ...",
    "Step {small}/{small} : RUN make -C /src/{word} install\n ---> Running in {hex12}\n ---> {hex12}",
    "INFO: Build completed successfully, {n} total actions",
    "> Task :{word}:compileJava UP-TO-DATE",
    "[INFO] Tests run: {small}, Failures: 0, Errors: 0, Skipped: {small}, "
    "Time elapsed: {small}.{n} s - in com.example.{word}.{Word}Test",
]
AGENTS = [
    "Mozilla/5.0 (X11; Linux x86_64; rv:1{small}.0) Gecko/20100101 Firefox/1{small}.0",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) "
    "Chrome/1{small}.0.0.0 Safari/537.36",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_{digit} like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    "Version/17.{digit} Mobile/15E148 Safari/604.1",
    "curl/8.{digit}.0",
    "python-requests/2.{small}.0",
    "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
    "-",
]
JAVA = (
    "java.lang.IllegalStateException: {Word} {n} is closed\n"
    "\tat com.example.{word}.{Word}Service.{word}({Word}Service.java:{n})\n"
    "\tat com.example.{word}.{Word}Controller.{word}({Word}Controller.java:{n})\n"
    "\tat java.base/java.util.concurrent.ThreadPoolExecutor.runWorker(ThreadPoolExecutor.java:1136)\n"
    "\tat java.base/java.lang.Thread.run(Thread.java:840)"
)
PYTHON = (
    "Traceback (most recent call last):\n"
    '  File "/srv/{word}/{word}.py", line {n}, in {word}_{word}\n'
    "    return self.{word}.{word}({word})\n"
    '  File "/srv/{word}/{word}/{word}.py", line {n}, in {word}\n'
    '    raise ValueError(f"unknown {word}: {{{word}}}")\nValueError: unknown {word}: {n}'
)


PATHS = [
    "/{word}",
    "/{word}/{word}.html",
    "/static/{word}.{hex8}.js",
    "/{word}/{n}",
    "/img/{word}.png",
    "/wp-login.php",
    "/robots.txt",
    "/v1/{word}s?{word}={n}",
    "/favicon.ico",
    "/",
]
STATUSES = [200, 200, 200, 201, 204, 301, 304, 400, 401, 403, 404, 500, 502, 503]
KEYS = (("time", "timestamp", "@timestamp"), ("level", "severity", "lvl"), ("msg", "message", "event"))
FIELDS = [
    ("service", "{word}-{word}"),
    ("host", "{host}"),
    ("trace_id", "{hex32}"),
    ("duration_ms", "{n}"),
    ("pid", "{pid}"),
    ("component", "{word}"),
    ("remote_addr", "{ip}:{port}"),
    ("caller", "{word}/{word}.go:{n}"),
]


class Machine:
    """One machine's names and numbers, and its clock."""

    def __init__(self, rng: random.Random):
        self.rng = rng
        self.now = datetime(2019, 1, 1) + timedelta(seconds=rng.uniform(0, 8 * 365 * 86400))
        self.step = 10 ** rng.uniform(-2, 2.5)
        self.host = rng.choice(WORDS) + rng.choice(["", "-", "0"]) + str(rng.randrange(1, 40))
        self.hosts = [f"{rng.choice(WORDS)}-{rng.randrange(20):02}" for _ in range(5)]
        self.users = rng.sample(USERS, 6)
        self.words = rng.sample(WORDS, rng.randrange(6, 30))
        self.ips = [".".join(str(rng.randrange(1, 255)) for _ in range(4)) for _ in range(rng.randrange(2, 25))]
        self.pids = [rng.randrange(300, 60_000) for _ in range(6)]

    def tick(self) -> None:
        """Advance the clock by a random interval."""
        self.now += timedelta(seconds=self.rng.expovariate(1) * self.step)

    def fill(self, template: str) -> str:
        """A template with names and numbers in it."""
        return (
            re.sub(r"(?<!\{)\{(\w+)\}(?!\})", lambda found: self.value(found[1]), template)
            .replace("{{", "{")
            .replace("}}", "}")
        )

    def value(self, name: str) -> str:
        """Returns a random value for a placeholder of a template."""
        rng = self.rng
        if name.startswith("hex"):
            return f"{rng.getrandbits(4 * int(name[3:])):0{int(name[3:])}x}"
        values: dict[str, Callable[[], str]] = {
            "word": lambda: rng.choice(self.words),
            "Word": lambda: rng.choice(self.words).title(),
            "user": lambda: rng.choice(self.users),
            "host": lambda: rng.choice(self.hosts),
            "ip": lambda: rng.choice(self.ips),
            "pid": lambda: str(rng.choice(self.pids)),
            "port": lambda: str(rng.randrange(1024, 65536)),
            "n": lambda: str(int(10 ** rng.uniform(0, 4.5))),
            "small": lambda: str(rng.randrange(1, 60)),
            "digit": lambda: str(rng.randrange(10)),
            "micro": lambda: f"{rng.randrange(10**6):06}",
            "epoch": lambda: str(int(self.now.timestamp())),
            "iso": lambda: self.now.isoformat(timespec="milliseconds") + "Z",
            "uuid": self.uuid,
            "mac": lambda: ":".join(f"{rng.randrange(256):02x}" for _ in range(6)),
            "HEX": lambda: f"{rng.getrandbits(40):010X}",
            "status": lambda: str(rng.choice(STATUSES)),
            "base64": lambda: base64.b64encode(rng.randbytes(32)).decode().rstrip("="),
        }
        return values[name]()

    def uuid(self) -> str:
        """Returns a random UUID."""
        digits = f"{self.rng.getrandbits(128):032x}"
        return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def syslog(machine: Machine) -> Callable[[], str]:
    """The system's log, with the date in one of two forms."""
    programs = machine.rng.sample(list(PROGRAMS), machine.rng.randrange(1, 6))
    iso = machine.rng.random() < 0.3

    def line() -> str:
        program = machine.rng.choice(programs)
        date = (
            machine.now.isoformat() + "+00:00"
            if iso
            else f"{machine.now:%b} {machine.now.day:2} {machine.now:%H:%M:%S}"
        )
        return f"{date} {machine.host} {machine.fill(program)}: {machine.fill(machine.rng.choice(PROGRAMS[program]))}"

    return line


def access(machine: Machine) -> Callable[[], str]:
    """A web server's log of requests, combined or common."""
    rng, combined = machine.rng, machine.rng.random() < 0.7
    paths = [machine.fill(rng.choice(PATHS)) for _ in range(40)]
    agents = [machine.fill(rng.choice(AGENTS)) for _ in range(6)]

    def line() -> str:
        method = rng.choice(["GET"] * 8 + ["POST", "HEAD"])
        request = f"{method} {rng.choice(paths)} HTTP/1.1"
        head = f'{rng.choice(machine.ips)} - - [{machine.now:%d/%b/%Y:%H:%M:%S} +0000] "{request}"'
        tail = f' "{rng.choice(["-", "https://www.example.com/"])}" "{rng.choice(agents)}"' if combined else ""
        return machine.fill(head + " {status} {n}") + tail

    return line


def application(machine: Machine) -> Callable[[], str]:
    """A program's log: Python's, Java's, or plain; now and then with a stack trace."""
    rng = machine.rng
    templates = rng.sample(APPLICATION, rng.randrange(4, 14))
    style, names = rng.randrange(4), [f"{rng.choice(machine.words)}.{rng.choice(machine.words)}" for _ in range(5)]
    trace = JAVA if style == 1 else PYTHON

    def line() -> str:
        level, name = rng.choice(["INFO"] * 6 + ["DEBUG"] * 2 + ["WARN", "ERROR"]), rng.choice(names)
        text = machine.fill(rng.choice(templates))
        if level == "ERROR" and rng.random() < 0.4:
            text += "\n" + machine.fill(trace)
        moment, thread = f"{machine.now:%Y-%m-%d %H:%M:%S}", f"nio-8080-exec-{rng.randrange(10)}"
        milli, pid = f"{machine.now.microsecond // 1000:03}", machine.value("pid")
        return (
            f"{moment},{milli} - {name} - {level} - {text}",
            f"{moment}.{milli} {level:5} {pid} --- [{thread:>15}] c.e.{name:20} : {text}",
            f"[{moment}] {level.lower()}: {text}",
            f"{level[0]}{machine.now:%m%d %H:%M:%S.%f} {pid:>7} {name}.go:{rng.randrange(400)}] {text}",
        )[style]

    return line


def structured(machine: Machine) -> Callable[[], str]:
    """A line of JSON or of logfmt an event."""
    rng = machine.rng
    templates = rng.sample(APPLICATION, rng.randrange(3, 10))
    keys = [rng.choice(names) for names in KEYS]
    extra = rng.sample(FIELDS, rng.randrange(1, 5))
    logfmt = rng.random() < 0.35

    def line() -> str:
        level = rng.choice(["info", "info", "info", "debug", "warn", "error"])
        record: dict[str, object] = {keys[0]: machine.fill("{iso}"), keys[1]: level}
        record[keys[2]] = machine.fill(rng.choice(templates))
        for key, template in extra:
            value = machine.fill(template)
            record[key] = int(value) if value.isdecimal() else value
        if logfmt:
            return " ".join(
                f"{key}={json.dumps(value) if ' ' in str(value) else value}" for key, value in record.items()
            )
        return json.dumps(record, separators=(",", ":"))

    return line


def database(machine: Machine) -> Callable[[], str]:
    """PostgreSQL's log."""

    def line() -> str:
        moment = f"{machine.now:%Y-%m-%d %H:%M:%S}.{machine.now.microsecond // 1000:03} UTC"
        return f"{moment} [{machine.value('pid')}] {machine.fill(machine.rng.choice(POSTGRES))}"

    return line


def building(machine: Machine) -> Callable[[], str]:
    """What a build or an installation prints."""
    templates = machine.rng.sample(BUILD, machine.rng.randrange(2, 6))
    return lambda: machine.fill(machine.rng.choice(templates))


FORMATS = (syslog, syslog, access, application, application, structured, structured, database, building)


def documents(count: int) -> Iterator[str]:
    """So many documents: some of one line, most of many."""
    for number in range(count):
        rng = random.Random(1_000_003 + number)
        machine = Machine(rng)
        line = rng.choice(FORMATS)(machine)
        lines = []
        for _ in range(1 if rng.random() < 0.25 else int(10 ** rng.uniform(0.5, 2.4))):
            lines.append(line())
            machine.tick()
        yield "\n".join(lines)
