"""The Stage service: frames in, engine, frames out.

Knows links, sessions and the engine; decides nothing about layers or routes. The coordinator's link opens and closes
sessions and hears of failures; neighbours' links bring hidden states.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import grpc.aio

from mesh.errors import MeshError
from mesh.layers import LayerRange
from mesh.wire import common_pb2, stage_pb2, stage_pb2_grpc
from mesh.wire.channel import format_endpoint
from mesh.wire.link import Link as NeighbourLink
from mesh.wire.link import LinkClosed, VersionMismatch
from mesh.wire.tensors import FLOAT32, FrameRefused, StageContract, StepAssembler
from node.engine import Done, Engine, Work
from node.forwarding import Forwarder
from node.opening import BadOpening, read_drawing
from node.scores import scores_frame, wire_logprobs
from node.sessions import BadStep, NextStage, Session, SessionRefused, SessionTable

logger = logging.getLogger(__name__)

_Reason = stage_pb2.SessionFailed.Reason


@dataclass(frozen=True, slots=True)
class StageIdentity:
    """Who this stage is, as it introduces itself on every link."""

    node_id: str
    incarnation: int
    release_id: str
    kernel_id: str
    layers: LayerRange
    num_layers: int

    def hello(self) -> stage_pb2.Hello:
        return stage_pb2.Hello(
            sender=self.node_id,
            incarnation=self.incarnation,
            release_id=self.release_id,
            kernel_id=self.kernel_id,
            layers=common_pb2.LayerRange(start=self.layers.start, stop=self.layers.stop),
        )


class _FrameCredit:
    """Gives the credit of one incoming frame back once all of its steps have left this node."""

    def __init__(self, link: NeighbourLink, steps: int) -> None:
        self._link, self._left = link, steps
        if steps == 0:
            link.grant_credit()

    def step_done(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._link.grant_credit()


@dataclass(frozen=True, slots=True)
class _Ticket:
    """What a step needs on its way out of the engine."""

    session: Session
    step: stage_pb2.Step
    credit: _FrameCredit


class StageService(stage_pb2_grpc.StageServicer):
    def __init__(
        self,
        identity: StageIdentity,
        contract: StageContract,
        sessions: SessionTable,
        check_may_open: Callable[[], None] = lambda: None,
    ) -> None:
        """``check_may_open`` raises a MeshError where no new session may begin; what runs goes on."""
        self._identity, self._contract, self._sessions = identity, contract, sessions
        self._check_may_open = check_may_open
        self._forwarders: dict[NextStage, Forwarder] = {}
        self._links: set[NeighbourLink] = set()
        self._engine: Engine | None = None

    def attach(self, engine: Engine) -> None:
        """Connect the engine whose ``on_done`` is ours."""
        self._engine = engine

    async def Link(  # noqa: N802  # named by the proto
        self, request_iterator: Any, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        link = NeighbourLink(context, context.peer())
        try:
            hello = await link.await_greeting()
        except (LinkClosed, VersionMismatch) as exc:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(exc))
        await link.answer(self._identity.hello())
        logger.info("link open", extra={"sender": hello.sender})
        assembler = StepAssembler(self._contract)
        self._links.add(link)
        try:
            await link.run(lambda frame: self._on_frame(link, assembler, frame))
        finally:
            self._links.discard(link)
            for session in self._sessions:
                if session.owner is link:  # nobody is left to hear its tokens
                    self._close(session.id)
            logger.info("link closed", extra={"sender": hello.sender})

    async def stop(self) -> None:
        """Close every link and session; whoever is on the other side learns of it at once."""
        for session in self._sessions:
            self._fail(session, _Reason.PEER_LOST, "the node is leaving", self._identity.node_id)
        for link in self._links:
            link.close()
        for forwarder in list(self._forwarders.values()):
            await forwarder.close()

    def _on_frame(self, link: NeighbourLink, assembler: StepAssembler, frame: stage_pb2.Frame) -> None:
        match frame.WhichOneof("kind"):
            case "steps":
                self._on_steps(link, assembler, frame.steps)
            case "open":
                self._open(link, frame.open)
            case "mask":
                self._on_mask(frame.mask)
            case "close":
                assembler.forget(frame.close.session)
                if self._sessions.get(frame.close.session, frame.close.epoch) is not None:
                    self._close(frame.close.session)

    def _open(self, link: NeighbourLink, request: stage_pb2.OpenSession) -> None:
        try:
            self._check_may_open()
            next_stage = self._next_stage(request)
            drawing = read_drawing(request, self._contract.vocab_size)
            self._sessions.open(
                request.session,
                request.epoch,
                request_id=request.request_id,
                max_tokens=request.max_tokens,
                sampling=drawing.sampling,
                return_logits=request.return_logits,
                next_stage=next_stage,
                owner=link,
                history=drawing.history,
                gate=drawing.gate,
                scoring=drawing.scoring,
            )
        except SessionRefused as exc:
            self._report(link, request, _Reason.NO_CAPACITY, str(exc))
        except BadOpening as exc:
            self._report(link, request, _Reason.BAD_STEP, str(exc))
        except _StaleRoute as exc:
            self._report(link, request, _Reason.STALE_ROUTE, str(exc))
        except MeshError as exc:  # the catalog is stale, or no longer lists what we serve
            self._report(link, request, _Reason.NO_CAPACITY, str(exc))
        else:
            if next_stage is not None and next_stage not in self._forwarders:
                self._forwarders[next_stage] = Forwarder(
                    next_stage, self._identity.hello(), self._contract.hidden_size, self._on_neighbour_lost
                )
            logger.info("session open", extra={"session": request.session, "request_id": request.request_id})
            link.send(
                stage_pb2.Frame(opened=stage_pb2.SessionOpened(session=request.session, epoch=request.epoch))
            )

    def _next_stage(self, request: stage_pb2.OpenSession) -> NextStage | None:
        """Check our own entry of the route, return the next one's."""
        if not request.stage_index < len(request.route) or not request.max_tokens:
            raise _StaleRoute("the route does not name this stage")
        here = request.route[request.stage_index]
        me = self._identity
        if (here.incarnation, here.layers.start, here.layers.stop) != (
            me.incarnation,
            me.layers.start,
            me.layers.stop,
        ):
            raise _StaleRoute(
                f"the route wants layers {here.layers.start}:{here.layers.stop}, this stage serves {me.layers}"
                if here.incarnation == me.incarnation
                else "the node was restarted since the route was made"
            )
        if request.dtype != FLOAT32:
            raise _StaleRoute("this stage exchanges float32 hidden states only")
        if request.stage_index + 1 == len(request.route):
            if me.layers.stop != me.num_layers:
                raise _StaleRoute(f"the route ends at layer {me.layers.stop} of {me.num_layers}")
            return None
        following = request.route[request.stage_index + 1]
        if following.layers.start != me.layers.stop:
            raise _StaleRoute(
                f"the route goes on at layer {following.layers.start}, expected {me.layers.stop}"
            )
        return NextStage(
            following.node_id,
            format_endpoint(following.endpoint.host, following.endpoint.port),
            following.incarnation,
        )

    def _on_steps(self, link: NeighbourLink, assembler: StepAssembler, frame: stage_pb2.Steps) -> None:
        try:
            steps = assembler.push(frame)
        except FrameRefused as exc:
            link.grant_credit()
            self._refuse(exc, [exc.session] if exc.session else [step.session for step in frame.steps])
            return
        credit = _FrameCredit(link, len(steps))
        for step, rows in steps:
            session = self._sessions.get(step.session, step.epoch)
            try:
                if session is None or not self._sessions.admit_step(
                    session, step.step_id, step.position, step.num_tokens
                ):
                    credit.step_done()
                    continue
            except BadStep as exc:
                self._fail(session, _Reason.BAD_STEP, str(exc))
                credit.step_done()
                continue
            is_last = session.next_stage is None
            work = Work(
                session=session.id,
                step_id=step.step_id,
                cache=session.cache,
                position=step.position,
                num_tokens=step.num_tokens,
                token_ids=tuple(step.token_ids) if rows is None else None,
                hidden=rows,
                sampling=session.sampling if step.sample and is_last else None,
                return_logits=session.return_logits,
                tag=_Ticket(session, step, credit),
                history=session.history,
                scoring=session.scoring if is_last else None,
            )
            if session.gate is not None and work.sampling is not None:
                self._submit_masked(session.gate.on_work(step.position + step.num_tokens, work))
            else:
                self._submit(work)

    def _on_mask(self, mask: stage_pb2.TokenMask) -> None:
        session = self._sessions.get(mask.session, mask.epoch)
        if session is None or session.gate is None:
            return
        expected = (self._contract.vocab_size + 31) // 32 * 4
        if len(mask.allowed) != expected:
            reason = f"a mask of {len(mask.allowed)} bytes, expected {expected}"
            self._fail(session, _Reason.BAD_STEP, reason)
            return
        self._submit_masked(session.gate.on_mask(mask.position, mask.allowed))

    def _submit_masked(self, met: tuple[Work, bytes] | None) -> None:
        if met is not None:
            work, mask = met
            self._submit(replace(work, mask=mask))

    def _submit(self, work: Work) -> None:
        assert self._engine is not None
        self._engine.submit(work)

    def on_done(self, batch: list[Done]) -> None:
        """Results of the engine, on the event loop: forward hidden states, report tokens."""
        tokens: dict[NeighbourLink, list[stage_pb2.Token]] = {}
        for done in batch:
            ticket: _Ticket = done.work.tag
            session, step, credit = ticket.session, ticket.step, ticket.credit
            if self._sessions.get(session.id, session.epoch) is not session:  # closed meanwhile
                credit.step_done()
            elif done.error is not None:
                self._fail(session, _Reason.INTERNAL, str(done.error))
                credit.step_done()
            elif done.hidden is not None:
                header = stage_pb2.Step(
                    session=session.id,
                    epoch=session.epoch,
                    step_id=step.step_id,
                    position=step.position,
                    sample=step.sample,
                )
                assert session.next_stage is not None  # only a last stage has none, and that one samples
                self._forwarders[session.next_stage].send((header, done.hidden, credit.step_done))
            else:
                credit.step_done()
                if done.scores:
                    session.owner.send(scores_frame(session, step, done.scores))
                if done.sampled is not None:
                    logits, logprobs = done.sampled.logits, done.sampled.logprobs
                    tokens.setdefault(session.owner, []).append(
                        stage_pb2.Token(
                            session=session.id,
                            epoch=session.epoch,
                            step_id=step.step_id,
                            position=done.sampled.position,
                            token_id=done.sampled.token_id,
                            logits=b"" if logits is None else logits.tobytes(),
                            logprobs=None if logprobs is None else wire_logprobs(logprobs),
                        )
                    )
        for link, drawn in tokens.items():
            link.send(stage_pb2.Frame(tokens=stage_pb2.Tokens(tokens=drawn)))

    def _on_neighbour_lost(self, stage: NextStage, reason: str) -> None:
        self._forwarders.pop(stage, None)
        for session in self._sessions:
            if session.next_stage == stage:
                self._fail(session, _Reason.PEER_LOST, f"next stage {stage.target}: {reason}", stage.node_id)

    def _refuse(self, exc: FrameRefused, sessions: list[str]) -> None:
        for session in self._sessions:
            if session.id in sessions:
                self._fail(session, _Reason.BAD_STEP, str(exc))

    def _fail(self, session: Session | None, reason: _Reason, message: str, lost_node_id: str = "") -> None:
        if session is not None:
            self._close(session.id)
            self._report(session.owner, session, reason, message, lost_node_id)

    def _close(self, session_id: str) -> None:
        closed = self._sessions.close(session_id)
        if closed is not None:
            if closed.gate is not None and (waiting := closed.gate.drop()) is not None:
                waiting.tag.credit.step_done()
            extra = {"session": closed.id, "request_id": closed.request_id, "tokens": closed.next_position}
            logger.info("session closed", extra=extra)
        assert self._engine is not None
        for work in self._engine.drop(session_id):
            work.tag.credit.step_done()

    def _report(
        self, link: NeighbourLink, about: Any, reason: _Reason, message: str, lost_node_id: str = ""
    ) -> None:
        session = about.id if isinstance(about, Session) else about.session
        extra = {"session": session, "request_id": about.request_id, "reason": message}
        logger.info("session failed", extra=extra)
        link.send(
            stage_pb2.Frame(
                failed=stage_pb2.SessionFailed(
                    session=session,
                    epoch=about.epoch,
                    reason=reason,
                    message=message,
                    node_id=self._identity.node_id,
                    lost_node_id=lost_node_id,
                )
            )
        )


class _StaleRoute(MeshError):
    """A route that does not fit this stage (any more)."""
