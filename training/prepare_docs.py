#!/usr/bin/env python3
"""Write data/docs_train.txt.xz and data/docs_valid.txt.xz: English text of Debian's documentation packages. Standard library, apt-get, dpkg.

    python3 training/prepare_docs.py                       fetches the packages by name with apt-get download (bookworm)
    python3 training/prepare_docs.py --debs FOLDER         takes the .deb files of a folder

Plain text of each document (HTML without markup, navigation and scripts; sources as they are), paragraphs that occurred before
left out, split by document. docs.json has each package's version, licence, SHA-256 and share, and the sums of the two texts. Of the
packages named below in these very versions the texts are the ones that the study used; newer ones give other bytes, and say so.
"""
import argparse
import gzip
import hashlib
import html.parser
import json
import lzma
import pathlib
import re
import subprocess
import tempfile

DOC = "usr/share/doc"
# Package: version, licence (of its copyright file), [(folder, name's end, what a path must not contain)].
PACKAGES = {
    "linux-doc-6.1": ("6.1.192-3", "GPL-2.0", [(f"{DOC}/linux-doc-6.1/Documentation", (".rst.gz", ".txt.gz"), "translations")]),
    "python3.11-doc": ("3.11.2-6+deb12u9", "PSF-2.0", [(f"{DOC}/python3.11", (".txt",), "LICENSE")]),
    "perl-doc": ("5.36.0-7+deb12u4", "Artistic or GPL-1.0+", [("usr/share/perl", (".pod",), "perlcn|perljp|perlko|perltw")]),
    "postgresql-doc-15": ("15.20-0+deb12u1", "PostgreSQL", [(f"{DOC}/postgresql-doc-15/html", (".html",), None)]),
    "git-doc": ("1:2.39.5-0+deb12u3", "GPL-2.0", [(f"{DOC}/git-doc", (".txt",), None)]),
    "debian-handbook": ("11.20220922", "CC-BY-SA-3.0 or GPL-2.0+", [(f"{DOC}/debian-handbook/html/en-US", (".html",), None)]),
    "apache2-doc": ("2.4.71-1~deb12u1", "Apache-2.0", [(f"{DOC}/apache2-doc/manual/en", (".html",), None)]),
    "python-django-doc": ("3:3.2.25-0+deb12u7", "BSD-3-Clause", [(f"{DOC}/python-django-doc/html", (".html",), "_modules|genindex")]),
    "anarchism": ("15.3-3", "GPL-2.0+", [(f"{DOC}/anarchism/html", (".html",), None)]),
    "exim4-doc-html": ("4.96-1", "GPL-2.0+", [(f"{DOC}/exim4-doc-html", (".html",), None)]),
    "rust-doc": ("1.63.0+dfsg1-2", "MIT or Apache-2.0", [(f"{DOC}/rust-doc/html/{book}", (".html",), "print.html") for book in (
        "book", "reference", "rust-by-example", "nomicon", "rustc", "rustdoc", "edition-guide", "embedded-book")]),
    "debian-policy": ("4.6.2.0", "GPL-2.0+", [(f"{DOC}/debian-policy", (".rst.txt", ".html"), "upgrading")]),
    "debian-reference-en": ("2.100", "GPL-2.0+", [("usr/share/debian-reference", (".html",), None)]),
}
TRAIN_SHA256 = "ef026ec4604eb28bd6f5c18d24a022ed0529068266ddc10fdba634082a942c7b"
VALID_SHA256 = "5d512d405ec544c97a12385854196b84a4aaa3991dc7286426e143246613a56c"
VALID_PER_MILLE = 14  # documents, by the hash of package and path
LEAST_REPEAT = 60  # shorter paragraphs may recur


class Text(html.parser.HTMLParser):
    """The text of a page. Blocks end lines; what frames every page alike is left out."""
    BLOCKS = set("p div li ul ol dl dt dd h1 h2 h3 h4 h5 h6 pre table tr br hr blockquote section article title".split())
    SKIPPED = set("script style nav head footer svg button select form".split())
    FRAMES = re.compile(r"navheader|navfooter|sphinxsidebar|related|headerlink|toc\b|sidebar|nav-chapters|menu|footer|searchbox|up_prev_next")
    VOID = set("br hr img meta link input col area base wbr source param embed".split())

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.parts, self.stack, self.hidden, self.raw = [], [], 0, 0

    def handle_starttag(self, tag, attributes):
        if tag in self.BLOCKS:
            self.parts.append("\n\n" if tag in ("p", "pre", "h1", "h2", "h3", "h4", "table", "dl", "ul", "ol") else "\n")
        if tag in self.VOID:
            return
        names = " ".join(value or "" for key, value in attributes if key in ("class", "id"))
        hides = tag in self.SKIPPED or (tag in ("div", "a", "ul", "nav", "table") and bool(self.FRAMES.search(names)))
        self.stack.append((tag, hides))
        self.hidden += hides
        self.raw += tag == "pre"

    def handle_endtag(self, tag):
        if not any(open_tag == tag for open_tag, _ in self.stack):
            return
        while self.stack:
            open_tag, hides = self.stack.pop()
            self.hidden -= hides
            self.raw -= open_tag == "pre"
            if open_tag == tag:
                break
        if tag in self.BLOCKS:
            self.parts.append("\n")

    def handle_data(self, data):
        if not self.hidden:
            self.parts.append(data if self.raw else re.sub(r"\s+", " ", data))


def text_of(path):
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    if path.suffix == ".html":
        page = Text()
        page.feed(text)
        text = "".join(page.parts)
    text = re.sub(r"\r\n?", "\n", text).replace("\u00a0", " ").replace("\u00b6", "")
    text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", "", text)
    text = "\n".join(line.rstrip() for line in text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def english(text):
    """Not an empty page, a table of numbers or another language."""
    letters = sum(c.isascii() and (c.isalpha() or c == " ") for c in text)
    return len(text) >= 400 and letters >= 0.6 * len(text) and sum(not c.isascii() for c in text) <= 0.02 * len(text)


def documents(root, places):
    for folder, ends, without in places:
        for path in sorted((root / folder).rglob("*")):
            name = path.relative_to(root).as_posix()
            if path.is_file() and not path.is_symlink() and name.endswith(tuple(ends)) and not (without and re.search(without, name)):
                yield name, text_of(path)


def fresh_paragraphs(text, seen):
    """The text without paragraphs of some length that occurred before, here or in an earlier document."""
    kept = []
    for paragraph in text.split("\n\n"):
        key = hashlib.sha256(" ".join(paragraph.split()).encode()).digest()[:10]
        if len(paragraph) < LEAST_REPEAT or key not in seen:
            kept.append(paragraph)
        seen.add(key)
    return "\n\n".join(kept)


def field(deb, name):
    return subprocess.run(["dpkg-deb", "-f", deb, name], check=True, capture_output=True, text=True).stdout.strip()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--debs", type=pathlib.Path, help="folder of .deb files; fetched if left out")
    parser.add_argument("--out", default=pathlib.Path(__file__).parent / "data", type=pathlib.Path)
    parser.add_argument("--packages", nargs="+", choices=list(PACKAGES), default=list(PACKAGES))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    texts, seen, packages = dict(train=[], valid=[]), set(), []
    with tempfile.TemporaryDirectory() as scratch:
        debs = args.debs or pathlib.Path(scratch)
        if not args.debs:
            subprocess.run(["apt-get", "download", "-qq", *args.packages], check=True, cwd=debs)
        for package in args.packages:
            version, licence, places = PACKAGES[package]
            deb = next(debs.glob(f"{package}_*.deb"))
            root = pathlib.Path(scratch) / "x" / package
            root.mkdir(parents=True)
            subprocess.run(["dpkg", "-x", deb, root], check=True)
            count = sizes = 0
            for name, text in documents(root, places):
                text = fresh_paragraphs(text, seen)
                if english(text):
                    number = int.from_bytes(hashlib.sha256(f"{package} {name}".encode()).digest()[:4], "big")
                    texts["valid" if number % 1000 < VALID_PER_MILLE else "train"].append(text + "\n\n\n")
                    count, sizes = count + 1, sizes + len(text.encode())
            packages.append(dict(package=package, version=field(deb, "Version"), licence=licence, documents=count, bytes=sizes,
                                 sha256=hashlib.sha256(deb.read_bytes()).hexdigest()))
            known = "" if packages[-1]["version"] == version else f" (the study: {version})"
            print(f"{package} {packages[-1]['version']}{known}: {count} documents, {sizes / 1e6:.2f} MB", flush=True)
    sums = {}
    for name, wanted in (("train", TRAIN_SHA256), ("valid", VALID_SHA256)):
        data = "".join(texts[name]).encode()
        sums[name] = dict(bytes=len(data), documents=len(texts[name]), sha256=hashlib.sha256(data).hexdigest())
        (args.out / f"docs_{name}.txt.xz").write_bytes(lzma.compress(data, preset=9))
        size = (args.out / f"docs_{name}.txt.xz").stat().st_size
        same = "as in the study" if sums[name]["sha256"] == wanted else "NOT the text of the study"
        print(f"docs_{name}: {len(data)} bytes in {len(texts[name])} documents, {size} compressed; sha256 {sums[name]['sha256']}, {same}")
    (args.out / "docs.json").write_text(json.dumps(dict(packages=packages, texts=sums), indent=1) + "\n")


if __name__ == "__main__":
    main()
