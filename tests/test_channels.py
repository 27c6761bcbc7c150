"""One conformance suite over every transport this machine can run."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from edges import CPU, DEADLINE_S, SHAPE, TRANSPORTS, abort, both_ends, payload, train
from mach.channels import Bell, Edge, Header, Kind
from mach.channels.base import frame_bytes
from mach.channels.ncclpair import Operation, still_running
from mach.errors import ChannelError, ChannelTimeoutError, PeerLostError
from mach.shapes import TensorSpec
from spawn import until


@pytest.fixture(params=TRANSPORTS)
def channel(request):
    """Makes edges of one transport."""

    def build(shape=SHAPE, dtype=torch.float32, credits=2, timeout_s=20.0, bells=(None, None)):
        edge = Edge(1, 2, TensorSpec(shape, dtype), credits)
        return both_ends(request.param, edge, timeout_s, bells)

    build.transport = request.param
    return build


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_payloads_arrive_in_order_bit_by_bit(channel, dtype):
    sender, receiver, source, _ = channel(dtype=dtype)
    with ThreadPoolExecutor() as pool:
        sending = pool.submit(
            lambda: [sender.send(train(b), payload(b, source, dtype=dtype)) for b in range(50)]
        )
        for b in range(50):
            got = receiver.receive(train(b))
            assert torch.equal(got.cpu(), payload(b, dtype=dtype))
        sending.result(20)
    close(sender, receiver)


def test_of_an_edge_over_nccl_no_frame_is_told_before_an_older_one():
    """Both may end between the look at the older and the look at the younger."""

    class Ended:
        """An operation that has ended at the `look`-th look; torch's cannot be told when to end."""

        def __init__(self, look):
            self.looks_left = look

        def is_completed(self):
            self.looks_left -= 1
            return self.looks_left <= 0

    told = []
    running = [
        Operation(pair, pytest.fail, lambda error, name=name: told.append(name), Ended(look))
        for name, pair, look in (("a1", "a", 2), ("b1", "b", 1), ("a2", "a", 1), ("a3", "a", 1))
    ]
    running = still_running(running)
    assert told == ["b1"]
    assert still_running(running) == []
    assert told == ["b1", "a1", "a2", "a3"]


def close(sender, receiver):
    with ThreadPoolExecutor() as pool:
        ends = [pool.submit(sender.close), pool.submit(receiver.close)]
        for end in ends:
            end.result(20)


def test_a_payload_may_be_overwritten_as_soon_as_send_returns(channel):
    sender, receiver, source, _ = channel()
    tensor = payload(0, source)
    sender.send(train(0), tensor)
    tensor.zero_()
    assert torch.equal(receiver.receive(train(0)).cpu(), payload(0))
    close(sender, receiver)


def test_what_was_received_stays_when_more_arrives(channel):
    sender, receiver, source, _ = channel(credits=2)
    kept = []
    for b in range(8):
        sender.send(train(b), payload(b, source))
        kept.append(receiver.receive(train(b)))
    assert all(torch.equal(kept[b].cpu(), payload(b)) for b in range(8))
    close(sender, receiver)


def test_a_tensor_that_needs_a_gradient_or_is_not_contiguous_can_be_sent(channel):
    sender, receiver, source, _ = channel()
    sender.send(train(0), payload(0, source, (5, 4)).t().requires_grad_())
    got = receiver.receive(train(0)).cpu()
    assert torch.equal(got, payload(0, CPU, (5, 4)).t())
    assert not got.requires_grad
    close(sender, receiver)


def test_a_slow_receiver_stops_the_sender_by_credits(channel):
    """However many slots a transport has at either end, their number is bounded."""
    sender, receiver, source, _ = channel(credits=2, timeout_s=0.3)
    sent, error = 0, None
    while error is None and sent < 20:
        try:
            sender.send(train(sent), payload(sent, source))
            sent += 1
        except ChannelTimeoutError as raised:
            error = raised
    assert 2 <= sent <= 4
    for part in ("activations 1->2", f"microbatch {sent}", "component 2", "0.3 s"):
        assert part in str(error)
    for b in range(sent):  # nothing was lost, and the sender can go on
        assert torch.equal(receiver.receive(train(b)).cpu(), payload(b))
    sender.send(train(sent), payload(sent, source))
    assert torch.equal(receiver.receive(train(sent)).cpu(), payload(sent))
    close(sender, receiver)


def test_an_end_of_stream_that_nobody_takes_in_is_reported_in_time():
    edge = Edge(1, 2, TensorSpec(SHAPE), 2)
    sender, receiver, *_ = both_ends("gloo", edge, timeout_s=0.5)
    for microbatch in range(2):  # the target has taken nothing, so the end waits behind them
        sender.send(train(microbatch), payload(microbatch))
    with pytest.raises(ChannelTimeoutError, match=r"component 2 .* waited 0.5 s") as error:
        sender.close()
    assert str(error.value).startswith("activations 1->2 at the end of the stream: component 2 ")
    sender.abort()
    receiver.abort()


def test_an_end_knows_whether_it_would_have_to_wait(channel):
    sender, receiver, source, _ = channel(credits=1)
    assert sender.ready()
    assert not receiver.ready()
    sender.send(train(0), payload(0, source))
    receiver.receive(train(0))
    close(sender, receiver)


def test_a_silent_sender_is_reported_with_edge_microbatch_component_and_seconds(channel):
    sender, receiver, source, _ = channel(timeout_s=0.2)
    with pytest.raises(ChannelTimeoutError) as error:
        receiver.receive(train(40))
    for part in ("activations 1->2", "microbatch 40", "component 1", "0.2 s"):
        assert part in str(error.value)
    sender.send(train(40), payload(1, source))  # a deadline that passed breaks nothing
    assert torch.equal(receiver.receive(train(40)).cpu(), payload(1))
    close(sender, receiver)


def test_an_end_of_stream_that_does_not_come_is_not_called_a_test_batch():
    sender, receiver, *_ = both_ends("gloo", Edge(1, 2, TensorSpec(SHAPE), 2), timeout_s=0.2)
    with pytest.raises(ChannelTimeoutError, match="expected the end of the stream from component"):
        receiver.close()
    abort(sender, receiver)


def test_a_payload_of_another_shape_is_refused_before_it_is_sent(channel):
    sender, receiver, source, _ = channel()
    with pytest.raises(ChannelError, match=r"expected float32\[4, 5\], got float32\[4, 6\]"):
        sender.send(train(3), payload(0, source, (4, 6)))
    sender.send(train(3), payload(0, source))
    receiver.receive(train(3))
    close(sender, receiver)


@pytest.mark.parametrize(
    ("sent", "expected", "message"),
    [
        (train(1), train(2), "expected microbatch 2, got microbatch 1"),
        (train(1), Header(Kind.EVALUATE, 1), "expected test batch 1, got microbatch 1"),
        (Header(Kind.EVALUATE, 1, origin=0), Header(Kind.EVALUATE, 1, origin=1), "test batch 1"),
    ],
)
def test_a_frame_out_of_turn_is_refused(channel, sent, expected, message):
    sender, receiver, source, _ = channel()
    sender.send(sent, payload(0, source))
    with pytest.raises(ChannelError, match=message):
        receiver.receive(expected)


def test_an_early_end_is_an_error_that_says_who_ran_fewer_steps(channel):
    sender, receiver, source, _ = channel()
    sender.send(train(0), payload(0, source))
    receiver.receive(train(0))
    with ThreadPoolExecutor() as pool:
        closing = pool.submit(sender.close)
        with pytest.raises(ChannelError, match="Component 1 ran fewer steps than component 2"):
            receiver.receive(train(1))
        closing.result(20)


def test_bytes_are_counted_at_both_ends(channel):
    sender, receiver, source, _ = channel()
    for b in range(3):
        sender.send(train(b), payload(b, source))
        receiver.receive(train(b))
    assert sender.bytes_sent == receiver.bytes_received == 3 * frame_bytes(TensorSpec(SHAPE))
    close(sender, receiver)


def test_large_and_tiny_frames_pass(channel):
    for shape in [(1,), (256, 1024)]:
        sender, receiver, source, _ = channel(shape=shape, credits=3)
        with ThreadPoolExecutor() as pool:
            sending = pool.submit(
                lambda s, shape, source: [
                    s.send(train(b), payload(b, source, shape)) for b in range(10)
                ],
                sender,
                shape,
                source,
            )
            for b in range(10):
                got = receiver.receive(train(b))
                assert torch.equal(got.cpu(), payload(b, CPU, shape))
            sending.result(20)
        close(sender, receiver)


@pytest.mark.parametrize(
    "header",
    [
        Header(Kind.TRAIN, 5),
        Header(Kind.TRAIN, 2**40, version=7, origin=2, life=3, clock=2**41),
        Header(Kind.EVALUATE, 1, origin=1),
    ],
)
def test_a_header_arrives_whole(channel, header):
    sender, receiver, source, _ = channel()
    sender.send(header, payload(0, source))
    receiver.receive(header)
    assert receiver.newest == header
    close(sender, receiver)


def test_a_microbatch_of_another_life_is_other_work():
    assert Header(Kind.TRAIN, 1, version=3, clock=9).same_work(train(1))
    assert not Header(Kind.TRAIN, 1, life=1).same_work(train(1))


# --- ends that never wait -----------------------------------------------------------------------


def a_live_channel(channel, **more):
    """Both ends of an edge and the bell that either rings."""
    bells = (Bell(), Bell())
    sender, receiver, source, _ = channel(bells=bells, **more)
    return sender, receiver, source, *bells


def poll(receiver, bell):
    """The next frame, waiting for it by the bell."""
    while (frame := receiver.poll()) is None:
        assert bell.wait(DEADLINE_S)
    return frame


@pytest.mark.parametrize("credits", [2, 3])
def test_an_offer_is_taken_while_there_is_a_credit_and_refused_at_once_after(channel, credits):
    """However a transport divides its slots between the ends: what waits longer comes too late."""
    sender, receiver, source, sender_bell, bell = a_live_channel(channel, credits=credits)
    sent = 0
    while sender.offer(train(sent), payload(sent, source)) or sender_bell.wait(0.2):
        sent = sender.bytes_sent // frame_bytes(TensorSpec(SHAPE))
        assert sent < 20
    assert sent == credits
    assert sender.alive
    assert sender.wait_s == 0
    for b in range(sent):  # nothing was lost, and the sender can go on
        header, got = poll(receiver, bell)
        assert header == train(b)
        assert torch.equal(got.cpu(), payload(b))
    until(lambda: sender.offer(train(sent), payload(sent, source)), DEADLINE_S)
    assert poll(receiver, bell)[0] == train(sent)
    abort(sender, receiver)


def test_a_poll_of_nothing_is_nothing(channel):
    sender, receiver, source, _, bell = a_live_channel(channel)
    assert receiver.poll() is None
    sender.offer(train(0), payload(0, source))
    poll(receiver, bell)
    assert receiver.poll() is None
    assert receiver.bytes_received == sender.bytes_sent == frame_bytes(TensorSpec(SHAPE))
    abort(sender, receiver)


def test_an_offer_of_another_shape_is_refused_also_where_it_would_not_be_sent(channel):
    sender, receiver, source, _, _ = a_live_channel(channel)
    for _ in range(2):
        with pytest.raises(ChannelError, match=r"expected float32\[4, 5\], got float32\[4, 6\]"):
            sender.offer(train(3), payload(0, source, (4, 6)))
        abort(receiver)
    abort(sender)


def test_the_newest_header_is_known_before_its_frame_is_taken(channel):
    sender, receiver, source, _, bell = a_live_channel(channel, credits=3)
    assert receiver.newest is None
    for b in range(3):
        sender.send(train(b, version=b), payload(b, source))
    until(lambda: receiver.newest == train(2, version=2), DEADLINE_S)
    assert poll(receiver, bell)[0] == train(0)
    assert receiver.newest == train(2, version=2)
    abort(sender, receiver)


def test_the_end_of_the_stream_is_no_frame(channel):
    sender, receiver, source, _, _ = a_live_channel(channel)
    sender.send(train(0), payload(0, source))
    receiver.receive(train(0))
    with ThreadPoolExecutor() as pool:
        closing = pool.submit(sender.close)
        until(lambda: not receiver.alive, DEADLINE_S)
        assert receiver.poll() is None
        receiver.close()
        closing.result(DEADLINE_S)
    assert not sender.offer(train(1), payload(1, source))
    abort(sender, receiver)


@pytest.mark.parametrize("aborted", ["sender", "receiver"])
def test_an_idle_end_hears_at_once_that_the_other_one_has_let_go(channel, aborted):
    sender, receiver, source, *bells = a_live_channel(channel)
    ends = {"sender": sender, "receiver": receiver}
    bell = dict(zip(ends, reversed(bells), strict=True))[aborted]
    ends.pop(aborted).abort()
    (other,) = ends.values()
    while other.alive:
        assert bell.wait(DEADLINE_S)
    assert not sender.offer(train(0), payload(0, source))
    assert receiver.poll() is None
    with pytest.raises(PeerLostError, match="component 2 is gone"):
        sender.send(train(0), payload(0, source))
    with pytest.raises(PeerLostError, match="component 1 is gone"):
        receiver.receive(train(0))
    abort(other)


@pytest.mark.parametrize("aborted", ["sender", "receiver"])
def test_what_arrived_before_the_edge_broke_can_still_be_taken(channel, aborted):
    sender, receiver, source, _, _ = a_live_channel(channel, credits=2)
    for b in range(2):
        sender.send(train(b), payload(b, source))
    until(lambda: receiver.newest == train(1), DEADLINE_S)
    (sender if aborted == "sender" else receiver).abort()
    until(lambda: not receiver.alive, DEADLINE_S)
    assert torch.equal(receiver.receive(train(0)).cpu(), payload(0))
    header, got = receiver.poll()
    assert header == train(1)
    assert torch.equal(got.cpu(), payload(1))
    assert receiver.poll() is None
    abort(sender, receiver)


def test_an_abort_ends_a_wait_on_either_side(channel):
    sender, receiver, _, _, _ = a_live_channel(channel)
    with ThreadPoolExecutor() as pool:
        receiving = pool.submit(receiver.receive, train(0))
        sender.abort()
        assert isinstance(receiving.exception(DEADLINE_S), PeerLostError)
    abort(sender, receiver)


def test_an_abort_may_come_twice_and_after_the_other_end_s(channel):
    sender, receiver, _, _, _ = a_live_channel(channel)
    abort(sender, sender, receiver, receiver)
