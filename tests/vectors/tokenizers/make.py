#!/usr/bin/env python3
"""Write the tokenizers of tests/tokenizer: a byte-level one, one with spaces as U+2581 that falls back to bytes, and one with words as every kind of decoder knows them."""
import json
import pathlib

FOLDER = pathlib.Path(__file__).parent


def write(name, normalizer, pre_tokenizer, post_processor, decoder, model, special):
    added = [dict(id=i, content=c, single_word=False, lstrip=False, rstrip=False, normalized=False, special=s) for c, i, s in special]
    tokenizer = dict(version="1.0", truncation=None, padding=None, added_tokens=added, normalizer=normalizer, pre_tokenizer=pre_tokenizer,
                     post_processor=post_processor, decoder=decoder, model=model)
    (FOLDER / name).write_text(json.dumps(tokenizer, ensure_ascii=True, separators=(",", ":")) + "\n")


def bpe(vocab, merges, fallback):
    return dict(type="BPE", dropout=None, unk_token=None, continuing_subword_prefix=None, end_of_word_suffix=None, fuse_unk=False,
                byte_fallback=fallback, ignore_merges=False, vocab=vocab, merges=merges)


def byte_level():
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    characters = {b: chr(b) for b in printable}
    for i, b in enumerate(b for b in range(256) if b not in characters):
        characters[b] = chr(256 + i)
    vocab = {characters[b]: (7 * b + 3) % 256 for b in range(256)}  # no byte is its own number
    text = lambda s: "".join(characters[b] for b in s.encode())
    merges = [("t", "h"), ("th", "e"), (" ", "the"), ("l", "l")]
    merges = [tuple(map(text, m)) for m in merges] + [tuple(text("é"))]
    for i, m in enumerate(merges):
        vocab["".join(m)] = 256 + i
    split = dict(type="Split", pattern=dict(Regex=r" ?[^\s]+|\s+(?!\S)|\s+"), behavior="Isolated", invert=False)
    level = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=False)
    first = dict(SpecialToken=dict(id="<|first|>", type_id=0))
    a, b = dict(Sequence=dict(id="A", type_id=0)), dict(Sequence=dict(id="B", type_id=1))
    post = dict(type="TemplateProcessing", single=[first, a], pair=[first, a, b],
                special_tokens={"<|first|>": dict(id="<|first|>", ids=[261], tokens=["<|first|>"])})
    special = [("<|first|>", 261, True), ("<|last|>", 262, True), ("[word]", 263, False)]
    write("byte_level.json", None, dict(type="Sequence", pretokenizers=[split, level]), post, level, bpe(vocab, [list(m) for m in merges], False), special)


def metaspace():
    vocab = {"<s>": 0, "</s>": 1, **{f"<0x{b:02X}>": 2 + b for b in range(256)}}
    for piece in ["\u2581", "a", "b", "\u2581a", "ab", "\u2581ab"]:
        vocab[piece] = len(vocab)
    merges = [["\u2581", "a"], ["a", "b"], ["\u2581a", "b"]]
    prepend = dict(type="Sequence", normalizers=[dict(type="Prepend", prepend="\u2581"),
                                                 dict(type="Replace", pattern=dict(String=" "), content="\u2581")])
    decoder = dict(type="Sequence", decoders=[dict(type="Replace", pattern=dict(String="\u2581"), content=" "), dict(type="ByteFallback"),
                                              dict(type="Fuse"), dict(type="Strip", content=" ", start=1, stop=0)])
    write("metaspace.json", prepend, None, None, decoder, bpe(vocab, merges, True), [("<s>", 0, True), ("</s>", 1, True)])


def words():
    """Laid out as Llama 2's; tests give it other decoders, for which it has words too."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, "<pad>": 3, **{f"<0x{b:02X}>": 4 + b for b in range(256)}}
    bare = ["a", "b", "lo", "wor", "ld", "Hello", "!", ".", "'", "n't", "do", "not", "s", "\n", "|", "  ", " ", "\u4f60", "\u597d", "\U0001f600", "e\u0301"]
    for word in bare:
        for piece in [word, "\u2581" + word, "##" + word, word + "</w>"]:
            vocab.setdefault(piece, len(vocab))
    for piece in ["\u2581", "\u2581\u2581", "\u2581world", "world", "a</w>b</w>", "</w>", "##", "<0xg1>", "<0x+5>", "H", "e", "l", "o", "w", "r", "d"]:
        vocab.setdefault(piece, len(vocab))
    merges = [["w", "o"], ["wo", "r"], ["l", "d"], ["wor", "ld"], ["\u2581", "world"], ["l", "o"], ["\u2581", "a"], ["\u2581", "b"]]
    vocab["wo"] = len(vocab)
    prepend = dict(type="Sequence", normalizers=[dict(type="Prepend", prepend="\u2581"),
                                                 dict(type="Replace", pattern=dict(String=" "), content="\u2581")])
    first = dict(SpecialToken=dict(id="<s>", type_id=0))
    a, b = dict(Sequence=dict(id="A", type_id=0)), dict(Sequence=dict(id="B", type_id=1))
    post = dict(type="TemplateProcessing", single=[first, a], pair=[first, a, b], special_tokens={"<s>": dict(id="<s>", ids=[1], tokens=["<s>"])})
    decoder = dict(type="Sequence", decoders=[dict(type="Replace", pattern=dict(String="\u2581"), content=" "), dict(type="ByteFallback"),
                                              dict(type="Fuse"), dict(type="Strip", content=" ", start=1, stop=0)])
    end = len(vocab)
    special = [("<unk>", 0, True), ("<s>", 1, True), ("</s>", 2, True), ("<pad>", 3, True), ("<|im_end|>", end, True), ("[TOOL]", end + 1, False),
               ("[w\u00f6rd ]", end + 2, False), ("\ufffd", end + 3, False)]
    write("words.json", prepend, None, post, decoder, bpe(vocab, merges, True), special)


byte_level()
metaspace()
words()
