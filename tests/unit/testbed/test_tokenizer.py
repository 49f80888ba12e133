"""The shipped tokenizer."""

from remnant.testbed.tokenizer import N_KEYS, N_TOPICS, N_VALUES, Alphabet, load_tokenizer


def test_any_text_survives():
    tokenizer = load_tokenizer()
    for text in ("Return the number of items.", "naïve — 日本 \n\t{}", ""):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text


def test_task_alphabet_is_single_tokens():
    tokenizer = load_tokenizer()
    a = Alphabet.of(tokenizer)
    assert (len(a.keys), len(a.values), len(a.topics)) == (N_KEYS, N_VALUES, N_TOPICS)
    ids = tokenizer.encode("<fact><k0><v95><t15>", add_special_tokens=False).ids
    assert ids == [a.fact, a.keys[0], a.values[-1], a.topics[-1]]
    assert len({a.pad, a.bos, a.eos, a.fact, a.ask, a.ok}) == 6


def test_text_never_uses_the_task_alphabet():
    a = Alphabet.of(load_tokenizer())
    assert min(load_tokenizer().encode("What the parser reads next.").ids) >= a.topics.stop
