"""No recording makes FFmpeg open another file or a URL, whatever its content or its name."""

import http.server
import io
import os
import threading

import numpy as np
import pytest

from qkd_jax.audio.reading import read_audio
from qkd_jax.audio.stdin import stdin_blocks
from qkd_jax.errors import InputError
from tests.audio.encoded import encode, stairs


@pytest.fixture
def secret(tmp_path):
    """A recording that no other file may lead to."""
    return encode(tmp_path / "secret.mp3", stairs(), "mp3")


@pytest.fixture
def server():
    """A server that counts what it is asked for."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{target}\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile '{target}'\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
    "dash": '<?xml version="1.0"?><MPD type="static"><Period><AdaptationSet mimeType="audio/mp4">'
    "<BaseURL>{target}</BaseURL><Representation><SegmentList><SegmentURL media='{target}'/></SegmentList>"
    "</Representation></AdaptationSet></Period></MPD>",
    "m3u": "{target}\n",
    "smil": '<smil><body><audio src="{target}"/></body></smil>',
}


@pytest.mark.parametrize("kind", PLAYLISTS)
@pytest.mark.parametrize("suffix", [".m3u8", ".mp3"])
def test_playlists_are_refused(tmp_path, secret, server, kind, suffix):
    address, asked = server
    for target in (secret.name, f"file:{secret}", f"{address}/x.mp3"):
        path = tmp_path / f"list{suffix}"
        path.write_text(PLAYLISTS[kind].format(target=target))
        with pytest.raises(InputError):
            read_audio(path)
        # As standard input it is samples, like any other text.
        content = path.read_bytes()
        assert sum(map(len, stdin_blocks(io.BytesIO(content), 16_000))) == len(content) // 2
    assert asked == []


@pytest.mark.parametrize(
    "name",
    [
        "concat:secret.mp3|secret.mp3",
        "http:127.0.0.1",
        "subfile,,start,0,end,99,,:secret.mp3",
        "data:,x",
        "-",
    ],
)
def test_a_file_name_that_looks_like_a_url_is_a_file_name(tmp_path, secret, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="expected a recording, found none"):
        read_audio(name)
    os.link(secret, name)
    np.testing.assert_array_equal(read_audio(name), read_audio(secret))


def test_references_within_a_film_are_not_followed(tmp_path, secret):
    """QuickTime may keep its samples in another file (dref)."""
    content = bytearray(encode(tmp_path / "x.m4a", stairs(), "m4a").read_bytes())
    start = content.index(b"url \0\0\0\1")
    content[start : start + 8] = b"url \0\0\0\0"  # not in this file
    (tmp_path / "y.m4a").write_bytes(content)
    whole, secret_sound = read_audio(tmp_path / "x.m4a"), read_audio(secret)
    try:
        read = read_audio(tmp_path / "y.m4a")
    except InputError:
        return
    assert len(read) == len(whole) != len(secret_sound)
