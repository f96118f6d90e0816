from qkd_jax.system.files import whole_file
from tests.faults import refused


def test_a_file_appears_whole_and_its_folders_are_created(tmp_path):
    path = tmp_path / "a" / "b" / "c.txt"
    with whole_file(path, "w") as file:
        file.write("bébé\n")
        assert not path.exists()
    assert path.read_bytes() == "bébé\n".encode()
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_the_old_file_and_an_unwritable_path_is_named(tmp_path):
    path = tmp_path / "c.bin"
    path.write_bytes(b"before")
    context = whole_file(path)
    context.__enter__().write(b"half")
    assert not context.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]
    with refused(r"c\.bin/d: could not be written: (Not a directory|File exists)"):
        whole_file(path / "d").__enter__()
