"""
checkpoint.fetch against a server on this machine that behaves as badly as those out there: whole files or
none, resumed where they were cut, checked before they get their name, fetched once however many ask; and one
line for all that goes wrong.
"""
import hashlib
import multiprocessing
import os
import socket
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import checkpoint

BODY = bytes(range(256)) * 12000                         # 3 MB, three pieces of fetch
SHA = hashlib.sha256(BODY).hexdigest()



class Handler(BaseHTTPRequestHandler):
    """GET of what `server.files` holds, in the way of `server.manners`; `server.seen` notes the requests."""

    def do_GET(self):
        server, wanted = self.server, self.headers.get('Range')
        server.seen.append((self.path, wanted))
        if self.path in server.redirects:
            place, headers = server.redirects[self.path]
            return self.head(302, headers | {'Location': place, 'Content-Length': '0'})
        path = self.path.partition('?')[0]
        if path not in server.files:
            return self.head(404, {'Content-Length': '0'})
        body, start, code = server.files[path], 0, 200
        if wanted and 'no ranges' not in server.manners:
            start, code = int(wanted.removeprefix('bytes=').removesuffix('-')), 206
            if start >= len(body):
                return self.head(416, {'Content-Range': f'bytes */{len(body)}', 'Content-Length': '0'})
        told = {} if 'no length' in server.manners else {'Content-Length': str(len(body) - start)}
        self.head(code, told)
        if 'slow' in server.manners:
            time.sleep(0.5)
        self.wfile.write(body[start:start + server.cut] if server.cut else body[start:])

    def head(self, code, headers):
        self.send_response(code)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()

    def log_message(self, *_):
        pass


@contextmanager
def serving():
    """-> the server: files {path: bytes}, redirects {path: (where to, headers)}, manners, cut, seen, url."""
    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    server.files, server.redirects, server.seen = {}, {}, []
    server.manners, server.cut = set(), 0    # 'no ranges', 'no length', 'slow'; bytes after which it hangs up
    server.url = f'http://127.0.0.1:{server.server_port}'
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def linked(body):
    """What a hub says of a large file where it sends one on to it."""
    return {'X-Linked-Size': str(len(body)), 'X-Linked-ETag': f'"{hashlib.sha256(body).hexdigest()}"'}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('NANOWORLD_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setenv('no_proxy', '*')
    return tmp_path / 'cache'


@pytest.fixture
def server(cache):
    with serving() as server:
        server.files['/dir/w.bin'] = BODY
        yield server


def says(*words, call):
    with pytest.raises(SystemExit) as stop:
        call()
    said = str(stop.value)
    assert '\n' not in said and 'Traceback' not in said
    for word in words:
        assert word in said, said


def left(cache):
    return sorted(str(path.relative_to(cache)) for path in cache.rglob('*') if path.is_file())


def test_a_file_is_fetched_once(server, cache):
    path = checkpoint.fetch(f'{server.url}/dir/w.bin')
    assert path == str(cache / 'w.bin') and open(path, 'rb').read() == BODY
    assert checkpoint.fetch(f'{server.url}/dir/w.bin', SHA, len(BODY)) == path
    assert server.seen == [('/dir/w.bin', None)] and left(cache) == ['w.bin']


def test_a_name_of_its_own(server, cache):
    """Two files of the same last part do not meet."""
    path = checkpoint.fetch(f'{server.url}/dir/w.bin?download=1', SHA, name='a/b/w.bin')
    assert path == str(cache / 'a' / 'b' / 'w.bin') and left(cache) == ['a/b/w.bin']


def test_what_was_put_there_by_hand_needs_no_network(cache):
    (cache / 'x').mkdir(parents=True)
    (cache / 'x' / 'w.bin').write_bytes(BODY)
    assert checkpoint.fetch('http://127.0.0.1:9/w.bin', SHA, len(BODY), name='x/w.bin').endswith('x/w.bin')
    for known in (('0' * 64, 0), ('', 5)):
        says(f'{cache}/x/w.bin is not http://127.0.0.1:9/w.bin: ', 'delete it, or put the right file there',
             call=lambda known=known: checkpoint.fetch('http://127.0.0.1:9/w.bin', *known, name='x/w.bin'))
    assert left(cache) == ['x/w.bin']                    # it is theirs, so it stays


def test_without_the_variable_it_is_the_home_folder(server, monkeypatch, tmp_path):
    monkeypatch.delenv('NANOWORLD_CACHE')
    monkeypatch.setenv('HOME', str(tmp_path))
    assert checkpoint.fetch(f'{server.url}/dir/w.bin') == f'{tmp_path}/.cache/nanoworld/w.bin'


# ---- cut and resumed ----

@pytest.mark.parametrize('known', (('', 0), (SHA, len(BODY))))
def test_a_cut_download_goes_on_where_it_ended(server, cache, known):
    server.cut = 2_000_000
    says(f'cannot fetch {server.url}/dir/w.bin: ', 'ended after 2,000,000 of 3,072,000 bytes', 'run again',
         f'{cache}/w.bin by hand', call=lambda: checkpoint.fetch(f'{server.url}/dir/w.bin', *known))
    assert 'w.bin' not in left(cache) and os.path.getsize(cache / 'w.bin.part') == 2_000_000
    server.cut = 0
    path = checkpoint.fetch(f'{server.url}/dir/w.bin', *known)
    assert open(path, 'rb').read() == BODY and left(cache) == ['w.bin']
    assert server.seen == [('/dir/w.bin', None), ('/dir/w.bin', 'bytes=2000000-')]


def test_a_server_that_knows_no_ranges_is_asked_for_all(server, cache):
    server.manners = {'no ranges'}
    cache.mkdir()
    (cache / 'w.bin.part').write_bytes(BODY[:1000])
    assert open(checkpoint.fetch(f'{server.url}/dir/w.bin'), 'rb').read() == BODY
    assert server.seen == [('/dir/w.bin', 'bytes=1000-')]


@pytest.mark.parametrize('part, asked', [
    (b'garbage', ['bytes=7-', None]),                    # another file's: known by the hash of the whole
    (BODY, [f'bytes={len(BODY)}-', None]),               # killed before it got its name
    (BODY + b'more', [f'bytes={len(BODY) + 4}-', None]), (b'', [None])])
def test_what_lies_in_the_part(server, cache, part, asked):
    cache.mkdir()
    (cache / 'w.bin.part').write_bytes(part)
    assert open(checkpoint.fetch(f'{server.url}/dir/w.bin', SHA), 'rb').read() == BODY
    assert [wanted for _, wanted in server.seen] == asked and left(cache) == ['w.bin']


def test_a_server_that_does_not_say_how_long_it_is(server, cache):
    server.manners, server.cut = {'no length'}, 10
    says('it has 10 bytes, not 3,072,000',
         call=lambda: checkpoint.fetch(f'{server.url}/dir/w.bin', size=len(BODY)))
    server.cut = 0
    assert open(checkpoint.fetch(f'{server.url}/dir/w.bin', SHA), 'rb').read() == BODY


def test_the_bar_counts_what_was_there_already(server, cache, monkeypatch):
    bars, real = [], checkpoint.tqdm

    def shown(**kw):
        bars.append(real(**kw | {'disable': False}))
        return bars[-1]
    monkeypatch.setattr(checkpoint, 'tqdm', shown)
    cache.mkdir()
    (cache / 'w.bin.part').write_bytes(BODY[:1000])
    checkpoint.fetch(f'{server.url}/dir/w.bin')
    assert [(bar.initial, bar.total, bar.n) for bar in bars] == [(1000, len(BODY), len(BODY))]


# ---- what is wrong never gets the name ----

@pytest.mark.parametrize('known, words', [
    (('0' * 64, 0), f'its sha256 is {SHA}, not {"0" * 64}'), (('', 7), 'it has 3,072,000 bytes, not 7')])
def test_another_file_than_was_wanted(server, cache, known, words):
    says(f'cannot fetch {server.url}/dir/w.bin: {words}', f'put the file at {cache}/w.bin by hand',
         call=lambda: checkpoint.fetch(f'{server.url}/dir/w.bin', *known))
    assert left(cache) == ['w.bin.lock'] and len(server.seen) == 1


def test_no_such_file(server, cache):
    url = f'{server.url}/no.bin'
    says(f'cannot fetch {url}: Not Found; ', call=lambda: checkpoint.fetch(url))
    assert left(cache) == ['no.bin.lock']


@pytest.mark.parametrize('url, words', [
    ('http://127.0.0.1:{closed}/w.bin', 'Connection refused'), ('http://no.host/w.bin', 'no such name'),
    ('nonsense', "unknown url type: 'nonsense'"), ('file:///nowhere/w.bin', 'No such file or directory')])
def test_no_network(cache, monkeypatch, url, words):
    """Who asks outside this machine is refused here, so that the test needs no network to fail."""
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        url, real = url.format(closed=s.getsockname()[1]), socket.getaddrinfo

        def local(host, *args, **kw):
            if host != '127.0.0.1':
                raise socket.gaierror(-2, 'no such name')
            return real(host, *args, **kw)
        monkeypatch.setattr(socket, 'getaddrinfo', local)
        name = os.path.basename(url)
        says(f'cannot fetch {url}: {words}; run again to go on with it, or put the file at {cache}/{name} by '
             'hand', call=lambda: checkpoint.fetch(url))
    assert left(cache) == [f'{name}.lock']


def test_a_full_disk(server, cache, monkeypatch):
    """What has been written stays for the next try; the name is not there."""
    class Full:
        def __init__(self, file): self.file = file
        def __enter__(self): return self
        def __exit__(self, *_): self.file.close()

        def write(self, piece):
            if self.file.tell() + len(piece) > 1 << 21:
                raise OSError(28, 'No space left on device')
            self.file.write(piece)
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, 'open', lambda path, mode='r', **kw: Full(open(path, mode)) if 'a' in mode
                        or mode == 'wb' else open(path, mode, **kw), raising=False)
        says(f'cannot fetch {server.url}/dir/w.bin: No space left on device; ',
             call=lambda: checkpoint.fetch(f'{server.url}/dir/w.bin'))
    assert left(cache) == ['w.bin.lock', 'w.bin.part']
    assert open(checkpoint.fetch(f'{server.url}/dir/w.bin'), 'rb').read() == BODY
    assert server.seen[1] == ('/dir/w.bin', f'bytes={1 << 21}-')


def test_a_cache_that_is_a_file(server, cache):
    cache.write_text('x')
    says(f'cannot make {cache}: File exists; set another $NANOWORLD_CACHE',
         call=lambda: checkpoint.fetch(f'{server.url}/dir/w.bin'))


def test_files_of_this_machine(cache, tmp_path):
    (tmp_path / 'w.bin').write_bytes(BODY)
    cache.mkdir()
    (cache / 'w.bin.part').write_bytes(b'garbage')       # file:// knows no ranges
    path = checkpoint.fetch(f'file://{tmp_path}/w.bin', SHA, len(BODY))
    assert open(path, 'rb').read() == BODY and left(cache) == ['w.bin']


def ask(url, answers):
    answers.put(checkpoint.fetch(url, SHA))


def test_three_processes_one_request(server, cache):
    server.manners = {'slow'}
    context = multiprocessing.get_context('fork')
    answers = context.Queue()
    askers = [context.Process(target=ask, args=(f'{server.url}/dir/w.bin', answers)) for _ in range(3)]
    for asker in askers:
        asker.start()
    assert [answers.get(timeout=60) for _ in askers] == [str(cache / 'w.bin')] * 3
    for asker in askers:
        asker.join()
    assert server.seen == [('/dir/w.bin', None)] and left(cache) == ['w.bin']


# ---- a hub ----

@pytest.fixture
def hub(server, monkeypatch):
    monkeypatch.setenv('NANOWORLD_HUB', server.url)
    server.redirects['/me/it/resolve/main/w.bin'] = ('/blob', linked(BODY))
    server.files['/blob'] = BODY
    return server


def test_a_file_of_a_hub(hub, cache):
    path = checkpoint.hub('me/it', 'w.bin')
    assert path == str(cache / 'me' / 'it' / 'w.bin') and open(path, 'rb').read() == BODY
    assert checkpoint.hub('me/it', 'w.bin') == path and len(hub.seen) == 2


def test_the_hub_is_asked_by_default(cache, monkeypatch):
    asked = []
    monkeypatch.delenv('NANOWORLD_HUB', raising=False)
    monkeypatch.setattr(checkpoint, 'fetch', lambda *args: asked.append(args))
    checkpoint.hub('me/it', 'w.bin')
    checkpoint.hub('me/it', 'w.bin', 'v2', SHA, 5)
    assert asked == [('https://huggingface.co/me/it/resolve/main/w.bin', '', 0, 'me/it/w.bin'),
                     ('https://huggingface.co/me/it/resolve/v2/w.bin', SHA, 5, 'me/it/w.bin')]


@pytest.mark.parametrize('body, words', [
    (BODY[:-1] + b'x', f'not {SHA}'), (BODY[:5], 'it has 5 bytes, not 3,072,000')])
def test_size_and_hash_come_with_the_redirect(hub, cache, body, words):
    hub.files['/blob'] = body
    says('cannot fetch', words, call=lambda: checkpoint.hub('me/it', 'w.bin'))
    assert left(cache) == ['me/it/w.bin.lock']


def test_resumed_behind_a_redirect(hub, cache):
    """Also when what lay there is garbage: the hash of the redirect tells."""
    (cache / 'me' / 'it').mkdir(parents=True)
    for part in (BODY[:9], b'garbage--'):
        (cache / 'me' / 'it' / 'w.bin.part').write_bytes(part)
        path = checkpoint.hub('me/it', 'w.bin')
        assert open(path, 'rb').read() == BODY
        os.remove(path)
    assert [wanted for path, wanted in hub.seen if path == '/blob'] == ['bytes=9-', 'bytes=9-', None]


def test_the_tag_of_a_small_file_is_no_sha256(hub, cache):
    """It is git's, of 40 digits."""
    hub.redirects['/me/it/resolve/main/w.bin'] = ('/blob', {'X-Linked-ETag': f'"{"a" * 40}"'})
    assert open(checkpoint.hub('me/it', 'w.bin'), 'rb').read() == BODY
