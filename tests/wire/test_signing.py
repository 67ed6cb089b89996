"""P11: signatures: what they cover, to the last bit; what cannot be a key; and that nothing shows one."""

from __future__ import annotations

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamq import SigningKeys
from streamq.errors import ConfigurationError, SignatureError
from streamq.wire.delivery import Delivery
from streamq.wire.signing import LONGEST_KEY, SHORTEST_KEY, Signer

OLD, NEW = b"o" * 32, bytes(range(32))
STREAM = "queue:standard"
FLAT = st.lists(st.binary(max_size=12) | st.sampled_from([b"task", b"id", b"args", b"1:,", b"sig"]), max_size=10).map(
    lambda parts: [b"task", b"t", *parts[: len(parts) // 2 * 2]]
)


def signer(*, namespace="queue", group="workers", sign_with="new", keys=None, **options):
    keys = keys or {"old": OLD, "new": NEW}
    return Signer(SigningKeys(keys, sign_with=sign_with, **options), namespace=namespace, group=group)


def delivered(flat):
    return Delivery(1, "standard", b"1-1", [part.encode() if isinstance(part, str) else part for part in flat])


def refused(flat, *, by=None, stream=STREAM):
    """Return why a message is refused."""
    delivery = delivered(flat)
    with pytest.raises(SignatureError) as error:
        (by or signer()).check(stream, delivery)
    assert not delivery.verified
    assert not (by or signer()).accepts(stream, delivery)
    return str(error.value)


class TestMessages:
    @given(FLAT)
    def test_what_is_signed_is_accepted(self, fields):
        """Whatever the fields are; a signature that they had is replaced, and signing is the same each time."""
        signed = signer().sign(STREAM, fields)
        delivery = delivered(signed)
        signer().check(STREAM, delivery)
        assert delivery.verified
        assert signer().sign(STREAM, signed) == signed
        assert signed == signer().sign(STREAM, fields)

    @given(FLAT, st.data())
    def test_every_bit_counts(self, fields, data):
        """One bit of any field's name or value, or of the signature, is changed: it is refused."""
        signed = signer().sign(STREAM, fields)
        at = data.draw(st.integers(0, len(signed) - 1).filter(lambda n: signed[n]))
        bit = data.draw(st.integers(0, 8 * len(signed[at]) - 1))
        raw = bytearray(signed[at])
        raw[bit // 8] ^= 1 << bit % 8
        refused([*signed[:at], bytes(raw), *signed[at + 1 :]])

    @given(FLAT, FLAT)
    def test_no_two_messages_have_one_signature(self, one, other):
        """Also not two whose parts are split elsewhere."""
        without = [
            [part for pair in zip(flat[::2], flat[1::2], strict=True) if pair[0] != b"sig" for part in pair]
            for flat in (one, other)
        ]
        assert (without[0] == without[1]) == (signer().sign(STREAM, one)[-1] == signer().sign(STREAM, other)[-1])

    def test_parts_cannot_be_split_elsewhere(self):
        """Lengths stand before the parts: `ab`, `c` is not `a`, `bc`."""
        assert signer().sign(STREAM, [b"ab", b"c"])[-1] != signer().sign(STREAM, [b"a", b"bc"])[-1]
        assert signer().sign(STREAM, [b"a", b"1:b,"])[-1] != signer().sign(STREAM, [b"a", b"", b"b", b""])[-1]

    def test_it_belongs_to_a_stream_and_a_namespace(self):
        """A message moved to another tier or another namespace is refused."""
        signed = signer().sign(STREAM, ["task", "t"])
        assert "moved to another stream or namespace" in refused(signed, stream="queue:critical")
        assert "moved" in refused(signed, by=signer(namespace="other"))

    def test_fields_added_left_out_and_exchanged(self):
        """All fields count, those that streamq does not know too, and their order."""
        signed = signer().sign(STREAM, ["task", "t", "mine", "1", "args", "[2]"])
        refused([*signed, b"retries", b"9"])
        refused([b"expires", b"1", *signed])
        refused([*signed[:2], *signed[4:]])
        refused([*signed[2:4], *signed[:2], *signed[4:]])
        refused([*signed, b"task", b"other"])
        refused([*signed[:6], b"sig"])  # half a pair

    def test_unsigned_unknown_and_no_signature(self):
        """The text says which of them it is, and which keys are accepted."""
        assert refused(["task", "t"]) == (
            "the message is not signed; accepted here: 'old', 'new'; if you trust it, give --accept-unsigned "
            "(accept_unsigned=True)"
        )
        other = signer(keys={"x": OLD}, sign_with="x").sign(STREAM, ["task", "t"])
        assert "unknown key 'x'; accepted here: 'old', 'new'" in refused(other)
        for rubbish in (b"", b"v1", b"v1:new:", b"v2:new:" + b"0" * 64, b"v1:new:" + b"G" * 64, b"\xff" * 80):
            assert "is no signature" in refused(["task", "t", "sig", rubbish])

    def test_a_form_cannot_be_exchanged(self):
        """What a looser form leaves out was not signed by a stricter one."""
        signed = signer().sign(STREAM, ["task", "t", "id", "1"])
        refused([*signed[:-1], signed[-1].replace(b"v1:", b"v1-latest:")])
        refused([*signed[:-1], signed[-1].replace(b"v1:", b"v1-joined:")])
        latest = [part.encode() for part in signer().sign_latest(["task", "t"])]
        refused([*latest[:-1], latest[-1].replace(b"v1-latest:", b"v1:")])
        dead = signer().sign_dead_letter(["task", "t"])
        refused(dead)

    def test_latest_leaves_out_id_and_stream_alone(self):
        """For debounce and keep_last the server chooses id and stream."""
        signed = signer().sign_latest(["task", "t", "dedup", "k"])
        for stream in (STREAM, "queue:bulk"):
            delivery = delivered(["id", "any", *signed])
            signer().check(stream, delivery)
        refused(["id", "any", *signed], by=signer(namespace="other"))
        refused(["id", "any", "retries", "3", *signed])
        refused([part.replace("k", "other") if part == "k" else part for part in signed])

    def test_rotation(self):
        """All keys are accepted, one signs; a key that is taken away is unknown."""
        by_old = signer(sign_with="old").sign(STREAM, ["task", "t"])
        signer().check(STREAM, delivered(by_old))
        assert "unknown key 'old'" in refused(by_old, by=signer(keys={"new": NEW}))
        assert "was changed" in refused(by_old, by=signer(keys={"old": NEW, "new": NEW}))

    def test_unsigned_where_they_are_accepted(self):
        """While signing is introduced: unsigned runs, a wrong signature never."""
        open_for_all = signer(accept_unsigned=True)
        open_for_all.check(STREAM, delivered(["task", "t"]))
        signed = signer().sign(STREAM, ["task", "t"])
        refused([*signed, b"retries", b"1"], by=open_for_all)
        refused(signer(keys={"x": OLD}, sign_with="x").sign(STREAM, ["task", "t"]), by=open_for_all)


class TestGroups:
    FIELDS = ("task", "total", "id", "w.3", "group", "workers")

    def joined(self, results=(b'{"a":1.0}', b"12345678901234567890123", b'"\\u00e9"'), rest=b',"x"]', texts=None):
        size = len(results)
        texts = texts or [signer().sign_result("w.3", n, size, one) for n, one in enumerate(results, 1)]
        return [*signer().sign_joined(STREAM, self.FIELDS, size, rest), b"args", b"[[" + b",".join(texts) + b"]" + rest]

    def test_results_arrive_byte_for_byte(self):
        """They are checked, and put in the place of their signed texts."""
        delivery = delivered(self.joined())
        signer().check(STREAM, delivery)
        assert delivery.fields[b"args"] == b'[[{"a":1.0},12345678901234567890123,"\\u00e9"],"x"]'
        assert delivery.verified
        again = delivered(signer().sign(STREAM, delivery.resend_fields("workers")))
        signer().check(STREAM, again)

    def test_each_result_has_its_place_in_its_group(self):
        """Exchanged, left out, doubled, of another group, of another size, not signed, changed: refused."""
        one, two = (signer().sign_result("w.3", n, 2, b"%d" % n) for n in (1, 2))
        fine = self.joined((b"1", b"2"), texts=[one, two])
        signer().check(STREAM, delivered(fine))
        of_other = signer().sign_result("w.4", 2, 2, b"2")
        of_three = signer().sign_result("w.3", 2, 3, b"2")
        other_group = signer(group="others").sign_result("w.3", 2, 2, b"2")
        for texts in ([two, one], [one, one], [one, of_other], [one, of_three], [one, other_group], [one, b"2"],
                      [one, b"null"], [one, two.replace(b" 2", b" 3")]):  # fmt: skip
            refused(self.joined((b"1", b"2"), texts=texts))
        refused(self.joined((b"1",), texts=[one, two]))

    def test_the_error_names_the_member_and_shows_no_result(self):
        """Not signed, signed with an unknown key, changed."""
        one = signer().sign_result("w.3", 1, 2, b'"secret"')
        by_other = signer(keys={"x": OLD}, sign_with="x").sign_result("w.3", 2, 2, b'"secret"')
        changed = signer().sign_result("w.3", 2, 2, b'"secreT"').replace(b"secreT", b"secret")
        for packed, why in (
            (b'"secret"', "is not signed"), (b'{"secret": 1e3}', "is not signed"),
            (b"12345678901234567890123", "is not signed"),
            (by_other, "is signed with the unknown key 'x'"), (changed, "the signature (key 'new') is not that of"),
        ):  # fmt: skip
            error = refused(self.joined((b"1", b"2"), texts=[one, packed]))
            assert why in error
            assert "the result of member 2 of 2 of the group" in error
            assert "secret" not in error
        assert "secret" not in refused([*self.joined()[:-1], b'["secret"]'])

    def test_unsigned_results_where_they_are_accepted(self):
        """While signing is introduced: byte for byte, beside signed ones. A wrong signature never."""
        open_for_all = signer(accept_unsigned=True)
        one = signer().sign_result("w.3", 1, 2, b'"a"')
        for packed in (b"1.50", b"12345678901234567890123", b'{ "b": [1, 2] }', b'"v1:new:text"', b"null"):
            delivery = delivered(self.joined((b'"a"', packed), texts=[one, packed]))
            open_for_all.check(STREAM, delivery)
            assert delivery.fields[b"args"] == b'[["a",' + packed + b'],"x"]'
        by_other = signer(keys={"x": OLD}, sign_with="x").sign_result("w.3", 2, 2, b"2")
        refused(self.joined((b"1", b"2"), texts=[one, by_other]), by=open_for_all)

    def test_the_arguments_after_the_results_are_signed(self):
        """And nothing that is no list of texts is taken for one."""
        fine = self.joined()
        refused([*fine[:-1], fine[-1].replace(b'"x"', b'"y"')])
        for args in (b"", b"[]", b"{}", b"7", b"[7]", b'["x"]', b"[[]]", b"[{}]", b"not json", fine[-1] + b" "):
            refused([*fine[:-1], args])
        refused(fine[:-2])
        refused([*fine[:-1], fine[-1].replace(b"[[", b"[ [")])

    @given(st.data())
    def test_every_bit_counts(self, data):
        fine = self.joined()
        at = data.draw(st.sampled_from([len(fine) - 1, len(fine) - 3, 1, 3, 5]))
        bit = data.draw(st.integers(0, 8 * len(fine[at]) - 1))
        raw = bytearray(fine[at])
        raw[bit // 8] ^= 1 << bit % 8
        refused([*fine[:at], bytes(raw), *fine[at + 1 :]])


class TestKeys:
    @pytest.mark.parametrize(
        ("keys", "options", "why"),
        [
            ({}, {}, "there are no signing keys: give at least one"),
            (None, {}, "signing keys of type NoneType cannot be used: give bytes by key id"),
            ({"a": OLD, "b": NEW}, {}, "sign_with=None"),
            ({"a": OLD}, {"sign_with": "b"}, "of 'a'"),
            ({"a": OLD[:-1]}, {}, f"has 31 bytes: give {SHORTEST_KEY} to {LONGEST_KEY}"),
            ({"a": bytes(LONGEST_KEY + 1)}, {}, "1025 bytes"),
            ({"a": "o" * 32}, {}, "type str: give bytes"),
            ({"a:b": OLD}, {}, "cannot be the id"),
            ({"": OLD}, {}, "cannot be the id"),
            ({1: OLD}, {}, "cannot be the id"),
        ],
    )
    def test_what_cannot_be_used(self, keys, options, why):
        """The error names the value, the bound and the remedy, and no key."""
        with pytest.raises(ConfigurationError, match=why) as error:
            SigningKeys(keys, **options)
        assert "oooo" not in str(error.value)

    def test_nothing_shows_a_key(self):
        """Neither repr, nor a copy, nor a pickle."""
        keys = SigningKeys({"2026-11": b"secret-" * 5})
        shown = f"{keys!r} {keys} {signer(keys={'a': b'secret-' * 5}, sign_with='a')!r}"
        assert "2026-11" in shown
        assert "secret" not in shown
        assert b"secret-".hex() not in shown
        for way in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(ConfigurationError, match="not copied or pickled"):
                way(keys)

    def test_keys_from_a_text(self):
        """As a file or a variable has them."""
        text = f"# rotated in November\n\n 2026-11 = {NEW.hex()} \n2026-08={OLD.hex()}\n"
        keys = SigningKeys.parse(text, sign_with="2026-11", accept_unsigned=True)
        assert (keys.ids, keys.sign_with, keys.accept_unsigned) == (("2026-11", "2026-08"), "2026-11", True)
        assert keys.digest("2026-08", b"x") == SigningKeys({"a": OLD}).digest("a", b"x")
        assert SigningKeys.parse(f"a={OLD.hex()},").sign_with == "a"

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ("", "it has no keys: write <id>=<hex digits>"),
            (NEW.hex(), "number 1 cannot be read"),
            (f"a={NEW.hex()}\nb c={NEW.hex()}", "number 2"),
            (f"a={NEW.hex()},a={NEW.hex()}", "'a' is given twice"),
            (f"a={NEW.hex()}z", "'a' is not written in hex"),
            ("a=00", "has 1 bytes"),
        ],
    )
    def test_a_text_that_cannot_be_read(self, text, why):
        with pytest.raises(ConfigurationError, match=why) as error:
            SigningKeys.parse(text)
        assert NEW.hex() not in str(error.value)


def test_a_dead_letter_and_a_schedule_have_signatures_of_their_own():
    """One is not accepted as the other, nor under another name."""
    dead = signer().sign_dead_letter(["task", "t", "args", "[]"])
    signer().check_dead_letter("1-0", dead)
    for wrong in (dead[:-2], [*dead[:1], b"u", *dead[2:]], signer().sign(STREAM, ["task", "t", "args", "[]"])):
        with pytest.raises(SignatureError, match="dead letter"):
            signer().check_dead_letter("1-0", wrong)
    stored = signer().sign_schedule("nightly", b"{}")
    signer().check_schedule("nightly", b"{}", stored)
    for name, content, signature in (("other", b"{}", stored), ("nightly", b"[]", stored), ("nightly", b"{}", "")):
        with pytest.raises(SignatureError, match="schedule"):
            signer().check_schedule(name, content, signature)


def test_the_signature_of_the_documentation():
    """docs/signing.md: what another language must compute, written out once more."""
    import hashlib
    import hmac as by_hand

    texts = ["streamq", "v1", "message", "queue", "queue:standard", "task", "send", "args", '["a@b.c"]']
    content = b"".join(b"%d:%b," % (len(text.encode()), text.encode()) for text in texts)
    expected = by_hand.new(NEW, content, hashlib.sha256).hexdigest()
    assert signer().sign(STREAM, texts[5:])[-1] == f"v1:new:{expected}".encode()
