"""A hundred hostile calls of the tools that run code: none reaches the machine, another episode, or past a limit."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from verifiers import sandbox
from verifiers.tools import Toolbox, ToolError, load

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sandbox.unavailable(shell=True) is not None, reason="no shell sandbox here"),
]
KEEP, TIMEOUT_S = 2000, 1.0
SECRET = "a-secret-of-the-host"

# {file} is a file of the host that holds SECRET, {port} a port of the host on which a server answers with SECRET. Every
# call is harmless where nothing isolates it: it reads, probes, or writes a file of the test or one called
# whetstone-probe.
PATHS = r"""
open('{file}').read()
open('/proc/self/root{file}').read()
open('../../../../../..{file}').read()
import os; os.listdir('/home')
import os; os.listdir('/root')
open('/etc/shadow').read()
open('/etc/hostname').read()
import pathlib; [str(p) for p in pathlib.Path('/proc/1').glob('*')]
import os; os.symlink('{file}', 'l'); open('l').read()
import os; os.link('{file}', 'l'); open('l').read()
open('{file}', 'w').write('x')
open('{file}', 'a').write('x')
import os; os.remove('{file}')
import os; os.chmod('{file}', 0o777)
import os; dict(os.environ)
import os; os.rename('{file}', 'moved')
import os; [os.read(n, 50) for n in range(3, 9)]
open('/dev/sda').read(1)
open('/proc/self/environ').read()
open('/tmp/..{file}').read()
import glob; glob.glob('/*/*secret*')
import os; os.mkdir('/opt/whetstone-probe')
open('/usr/lib/whetstone-probe', 'w')
import os; os.chroot('/')
import os; os.setuid(0)
"""
FORKS = r"""
import os; os.fork()
import subprocess; subprocess.run(['ls', '/'])
import os; os.system('ls /')
import os; os.posix_spawn('/bin/ls', ['ls'], {{}})
import os; os.execv('/bin/ls', ['ls'])
import multiprocessing; multiprocessing.Process(target=print).start()
import os; os.kill(1, 0)
import os; os.kill(os.getppid(), 0)
import os; os.getpgid(1)
import pty; pty.fork()
import threading; [threading.Thread(target=threading.Event().wait, daemon=True).start() for _ in range(100)]
"""
NETWORK = r"""
import socket; socket.create_connection(('127.0.0.1', {port}), timeout=1).recv(99)
import urllib.request; urllib.request.urlopen('http://127.0.0.1:{port}', timeout=1).read()
import socket; socket.socket(socket.AF_UNIX).connect('{file}')
import socket; socket.socket().bind(('127.0.0.1', 0))
import socket; socket.getaddrinfo('localhost', {port})
import http.client; http.client.HTTPConnection('127.0.0.1', {port}).request('GET', '/')
"""
OUTPUT = r"""
print('x' * 10**6)
'y' * 10**6
for _ in range(10**4): print('z' * 100)
import sys; sys.stderr.write('e' * 10**6)
import os; os.write(1, b'a' * 10**6)
raise ValueError('v' * 10**6)
"""
SLEEP = r"""
import time; time.sleep(30)
while True: pass
import threading; threading.Event().wait(30)
"""
OTHERS = r"""
open('mine').read()
import os; os.listdir('.')
mine
import glob; glob.glob('/tmp/**', recursive=True)
"""
SHELL = r"""
cat {file}
cat /proc/self/root{file}
cat ../../../../..{file}
ln -s {file} l; cat l
echo x > {file}
rm {file}
mv {file} moved; cat moved
ls -la /home /root
cat /etc/shadow
env
find / -name '*secret*' 2> /dev/null
mount
chroot / ls
su -c id
sudo -n id
kill -0 1
ps aux
cat /proc/1/environ
cat /proc/*/environ
exec 3<>/dev/tcp/127.0.0.1/{port}; cat <&3
bash -c 'cat < /dev/tcp/127.0.0.1/{port}'
sleep 30
sleep 30 &
nohup sleep 30 & disown
yes | head -c 1000000
head -c 1000000 /dev/zero | tr '\0' a
for i in $(seq 50); do (sleep 20 &) ; done
head -c 100000000 /dev/zero > big
for i in $(seq 5000); do : > f$i; done
cat mine
ls -a
cat /tmp/work/../work/mine
touch /etc/whetstone-probe
touch /usr/bin/whetstone-probe
ulimit -t unlimited; ulimit -t
trap '' TERM; sleep 20
unshare -r id
mkfifo p; cat p
ls -la /dev
hostname
id
ls /sys/class/net
cat /proc/net/tcp
cat /proc/mounts
exit 1
"""

CALLS = [
    ("python", code) for group in (PATHS, FORKS, NETWORK, OUTPUT, SLEEP, OTHERS) for code in group.split("\n")[1:-1]
]
CALLS += [("shell", command) for command in SHELL.split("\n")[1:-1]]


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A server of the host that answers every connection with the secret."""
    server = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                connection.sendall(SECRET.encode())

    threading.Thread(target=answer, daemon=True).start()
    yield server.getsockname()[1]
    server.close()


def outcome(name: str, code: str) -> tuple[str, float]:
    box = Toolbox([(load(name), {"timeout_s": TIMEOUT_S, "max_output_chars": KEEP})])
    started = time.monotonic()
    try:
        text = box.call(name, {"code" if name == "python" else "command": code})
    except ToolError as exc:
        text = str(exc)
    return text, time.monotonic() - started


def test_no_hostile_call_escapes_and_the_tools_work_after_all_of_them(tmp_path: Path, port: int) -> None:
    assert len(CALLS) == 100
    host = tmp_path / "host-secret.txt"
    host.write_text(SECRET)
    before = {p.name for p in Path("/tmp").iterdir()}
    other = Toolbox([(load("python"), {}), (load("shell"), {})])
    other.call("python", {"code": f"mine = '{SECRET}'; open('mine', 'w').write(mine)"})
    other.call("shell", {"command": f"echo {SECRET} > mine"})
    with ThreadPoolExecutor(sandbox.size()) as threads:
        results = list(threads.map(lambda c: outcome(c[0], c[1].format(file=host, port=port)), CALLS))
    escaped = [call for call, (text, _) in zip(CALLS, results, strict=True) if SECRET in text]
    assert escaped == []
    assert max(len(text) for text, _ in results) < KEEP + 200
    assert host.read_text() == SECRET
    new = {p.name for p in Path("/tmp").iterdir()} - before  # other programs of this machine may add files of their own
    assert [name for name in new if any(name in code for _, code in CALLS)] == []
    assert other.call("python", {"code": "mine == open('mine').read()"}) == "True"
    assert other.call("shell", {"command": "cat mine"}) == SECRET
