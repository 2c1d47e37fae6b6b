"""Plays environments of Prime Intellect's `verifiers` package, in an interpreter that has it. The guest of a bridge.

Run as a script: `python -P _prime_guest.py BRIDGE_GUEST SPEC SOCKET`. SPEC is JSON: taskset, dirs, environment.
The environment runs as it is: its own rollout, tools, stops and rewards. Its model is an HTTP endpoint in this process
that passes each request to the other side of the bridge and waits for the answer.

requests: {"do": "describe"} | {"do": "tasks", "limit"} | {"do": "score", "rows"} | {"do": "start", "task"} |
          {"do": "reply", "message", "finish_reason"} | {"do": "stop"}
The last three are answered by {"messages", "tools"}, the model's next request, or by {"end": {"reward", ...}}.
"""

import asyncio
import contextlib
import importlib.util
import inspect
import json
import math
import os
import pathlib
import sys
import tempfile
import types
import uuid
from functools import partial

MODEL = "policy"
STOPPED = {"error": {"message": "the limit of this episode is reached", "type": "invalid_request_error",
                     "code": "context_length_exceeded"}}  # fmt: skip
HARNESS = "whetstone_loop"  # the name that the in-process harness is registered under


def load(spec):
    """The environment, with one seat for the policy. Raises ValueError where it has several."""
    for folder in reversed(spec["dirs"]):
        sys.path.insert(0, folder)
    import verifiers.v1 as vf

    register_harness(vf)
    fork_tool_servers()
    data = {**spec["environment"]}
    data["taskset"] = {**data.get("taskset", {}), "id": spec["taskset"]}
    fields = vf.env_config_type(spec["taskset"], data.get("id", "")).model_fields
    seats = {name: field.default for name, field in fields.items() if isinstance(field.default, vf.AgentConfig)}
    if len(seats) != 1:
        raise ValueError(f"the environment has the seats {', '.join(seats)}; one seat can be trained")
    ((name, default),) = seats.items()
    seat = dict(data.get(name, {}))
    seat.setdefault("runtime", {"type": "subprocess"})  # the package's own default is a cloud
    if default.harness is None and vf.default_harness_id(spec["taskset"]) == "bash":
        seat.setdefault("harness", {"id": HARNESS})  # the package's own default is a coding agent
    data[name] = seat
    return vf.load_environment(vf.resolve_env_config(data))


def register_harness(vf):
    """The chat loop of the package's `null` harness without a process of its own: a rollout starts at once."""
    from verifiers.v1.dialects.chat import message_to_wire
    from verifiers.v1.harnesses.utils.mcp import connect_mcp

    class LoopHarness(vf.Harness[vf.HarnessConfig]):
        APPENDS_SYSTEM_PROMPT = SUPPORTS_MCP = SUPPORTS_RESUME = True
        EXECUTES_CODE = NEEDS_CONTAINER = False

        async def launch(self, ctx, trace, runtime, endpoint, secret, mcp_urls, data):
            import httpx

            system, prompt = self.resolve_prompt(data)
            messages = [{"role": "system", "content": system}] if system else []
            if isinstance(prompt, str):
                messages.append({"role": "user", "content": prompt})
            else:
                messages += [message_to_wire(message) for message in prompt or []]
            given = {name: {"url": url, "timeout": self.config.tool_timeout} for name, url in mcp_urls.items()}
            async with contextlib.AsyncExitStack() as stack, httpx.AsyncClient(timeout=None) as client:
                tools, dispatch, servers = await connect_mcp({"mcpServers": given}, stack)
                post = partial(client.post, f"{endpoint.rstrip('/')}/chat/completions",
                               headers={"Authorization": f"Bearer {secret}"})  # fmt: skip
                while (message := await next_message(post, messages, tools)) is not None:
                    messages.append(message)
                    if not message.get("tool_calls"):
                        break
                    for call in message["tool_calls"]:
                        messages.append(await called(call, dispatch, servers))
            return vf.ProgramResult(exit_code=0, stdout="", stderr="")

    module = types.ModuleType(HARNESS)
    module.__dict__.update(LoopHarness=LoopHarness, __all__=["LoopHarness"])
    sys.modules[HARNESS] = module


def fork_tool_servers():
    """Start an environment's own tool servers as forks of this process, which has imported everything.

    The package starts `python -m MODULE` for every episode, which imports all of it again: seconds of CPU time. Servers
    outside this machine are left to the package.
    """
    from verifiers.v1.mcp import launch

    started_by_the_package = launch.serve_in_runtime

    async def serve_in_runtime(server, runtime, *, exposed, state_url=None, state_secret=""):
        given = {"exposed": exposed, "state_url": state_url, "state_secret": state_secret}
        if runtime.type != "subprocess":
            return await started_by_the_package(server, runtime, **given)
        port_file = os.path.join(tempfile.mkdtemp(prefix="tool-server-"), "port")
        process = os.fork()
        if process == 0:
            try:
                os.environ.update(VF_CONFIG=server.config.model_dump_json(), VF_STATE_URL=state_url or "",
                                  VF_STATE_SECRET=state_secret, MCP_PORT_FILE=port_file)  # fmt: skip
                type(server).run()
            except BaseException as exc:
                print(f"tool server {server.server_name!r}: {guest.shown(exc)}", file=sys.stderr, flush=True)
            finally:
                os._exit(1)
        return await listening_port(port_file, process, server.server_name)

    launch.serve_in_runtime = serve_in_runtime


async def listening_port(port_file, process, name):
    """The port of a forked tool server, once it accepts connections. Raises RuntimeError where it has ended."""
    port = None
    while True:
        if os.waitpid(process, os.WNOHANG)[0]:
            raise RuntimeError(f"the tool server {name!r} ended while it started")
        with contextlib.suppress(OSError, ValueError):
            port = port or int(pathlib.Path(port_file).read_text())
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return port
        await asyncio.sleep(0.02)


async def next_message(post, messages, tools):
    """The model's message; None where the episode has reached its limit. Raises RuntimeError."""
    reply = await post(json={"model": MODEL, "messages": messages, **({"tools": tools} if tools else {})})
    if reply.status_code == 400 and STOPPED["error"]["code"] in reply.text:
        return None
    if reply.is_error:
        raise RuntimeError(f"the model's endpoint answered {reply.status_code}: {reply.text[:300]}")
    return {key: value for key, value in reply.json()["choices"][0]["message"].items() if value is not None}


async def called(call, dispatch, servers):
    """The message with a tool's result; what is wrong with the call is a result too."""
    from verifiers.v1.harnesses.utils.mcp import call_mcp

    name = call["function"]["name"]
    try:
        arguments = json.loads(call["function"]["arguments"] or "{}")
    except ValueError as exc:
        arguments = exc
    if isinstance(arguments, Exception):
        content = f"error: invalid JSON in tool arguments ({arguments})"
    elif not isinstance(arguments, dict):
        content = "error: tool arguments must be a JSON object"
    elif name not in dispatch:
        content = f"error: unknown tool {name!r}"
    else:
        content = await call_mcp(servers, dispatch, name, arguments)
    return {"role": "tool", "tool_call_id": call["id"], "name": name, "content": content}


# --- tasks and rewards ------------------------------------------------------------------------------------------------


def described(env):
    import verifiers

    return {"version": verifiers.__version__, "bounded": bool(env.taskset.bounded)}


def tasks(env, limit):
    """Rows of the taskset: what its tasks hold, and the conversation that opens them, None where the user opens it."""
    taskset = env.taskset if limit is None else env.taskset.take(limit)
    if not taskset.bounded:
        raise ValueError("the taskset yields tasks forever; say how many to take")
    rows = []
    for task in taskset:
        data = task.data.model_dump(mode="json")
        prompt, system = data.get("prompt"), data.get("system_prompt")
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if messages and system:
            messages = [{"role": "system", "content": system}, *messages]
        rows.append({"messages": messages, "data": data})
    return rows


def task_of(env, given):
    """The task of a row, from the fields that its own data type has."""
    kind = type(env.taskset).task_type()
    fields = kind.data_type().model_fields
    data = kind.data_type().model_validate({name: value for name, value in given.items() if name in fields})
    return kind(data, env.config.taskset.task)


async def score(env, rows):
    """[reward or None, detail] of each row: its task's own rewards, on a conversation that ends with the completion."""
    return [await graded(env, row) for row in rows]


async def graded(env, row):
    try:
        task = task_of(env, row["task"])
        for hook in task.hooks("reward"):
            given = inspect.signature(hook).parameters.get("runtime")
            if given is not None and given.default is inspect.Parameter.empty:
                return [None, f"the reward {hook.__name__!r} needs a runtime; play the environment with tools.prime"]
        trace = trace_of(task, row["prompt"], row["completion"])
        await task.score(trace)
        return [total(trace), ", ".join(f"{name} {reward.score:g}" for name, reward in trace.rewards.items())]
    except Exception as exc:  # the border: other people's rewards
        return [None, guest.shown(exc.__cause__ or exc)]


def trace_of(task, prompt, completion):
    import verifiers.v1 as vf
    from verifiers.v1.state import state_cls

    messages = list(task.data.prompt) if isinstance(task.data.prompt, list) else [vf.UserMessage(content=prompt)]
    if task.data.system_prompt:
        messages = [vf.SystemMessage(content=task.data.system_prompt), *messages]
    nodes = [vf.MessageNode(parent=number - 1 if number else None, message=message)
             for number, message in enumerate(messages)]  # fmt: skip
    nodes.append(vf.MessageNode(parent=len(nodes) - 1, message=vf.AssistantMessage(content=completion), sampled=True))
    return vf.Trace(
        task=vf.TraceTask(type=type(task).__name__, data=task.data, key=task.key, hash=task.hash),
        agent=vf.AgentInfo(config=vf.AgentConfig(model=MODEL)), state=state_cls(type(task))(), nodes=nodes,
        is_completed=True, ok=True,
    )  # fmt: skip


def total(trace):
    """The weighted sum of a trace's rewards. Raises ValueError where one is missing or not finite."""
    if not trace.rewards:
        raise ValueError("the task has no reward")
    for name, reward in trace.rewards.items():
        if reward is None or not math.isfinite(reward.value):
            raise ValueError(f"the reward {name!r} is {'missing' if reward is None else reward.value}")
    return float(trace.reward)


# --- one episode ------------------------------------------------------------------------------------------------------


class Play:
    """An episode whose model is on the other side of the bridge."""

    def __init__(self, env, task):
        self.env, self.task = env, task
        self.requests = asyncio.Queue()  # (body of a request, future of its answer)
        self.answer = None
        self.episode = None

    async def start(self):
        from aiohttp import web

        application = web.Application(client_max_size=1 << 30)
        application.router.add_post("/v1/chat/completions", self.complete)
        self.runner = web.AppRunner(application)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        port = site._server.sockets[0].getsockname()[1]
        self.episode = asyncio.create_task(self.run(f"http://127.0.0.1:{port}/v1"))
        return await self.next()

    async def run(self, url):
        import verifiers.v1 as vf

        client = vf.EvalClientConfig(base_url=url, api_key_var="NO_KEY_IS_NEEDED")
        async with self.env.serving():
            return await self.env.run_episode(self.task, vf.ModelContext(model=MODEL, client=client))

    async def complete(self, request):
        from aiohttp import web

        body = await request.json()
        future = asyncio.get_running_loop().create_future()
        await self.requests.put((body, future))
        completion = await future
        if completion is None:
            return web.json_response(STOPPED, status=400)
        if body.get("stream"):
            return web.Response(text=streamed(completion), content_type="text/event-stream")
        return web.json_response(completion)

    async def next(self):
        """The model's next request, or the end."""
        request = asyncio.create_task(self.requests.get())
        await asyncio.wait([request, self.episode], return_when=asyncio.FIRST_COMPLETED)
        if not request.done():
            request.cancel()
            return {"end": ended(self.episode.result())}
        body, self.answer = request.result()
        return {"messages": body["messages"], "tools": body.get("tools")}

    async def reply(self, message, finish_reason):
        choice = {"index": 0, "message": message, "finish_reason": finish_reason}
        self.answer.set_result({"id": uuid.uuid4().hex, "object": "chat.completion", "created": 0, "model": MODEL,
                                "choices": [choice],
                                "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}})  # fmt: skip
        return await self.next()

    async def stop(self):
        """End the episode at its limit; its rewards judge what there is."""
        event = {}
        while "end" not in event:
            self.answer.set_result(None)
            event = await self.next()
        return event


def streamed(completion):
    """A completion as the events of a stream."""
    choice = completion["choices"][0]
    delta = {**choice["message"]}
    if delta.get("tool_calls"):
        delta["tool_calls"] = [{"index": n, **call} for n, call in enumerate(delta["tool_calls"])]
    chunk = {**completion, "object": "chat.completion.chunk",
             "choices": [{"index": 0, "delta": delta, "finish_reason": choice["finish_reason"]}]}  # fmt: skip
    return f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"


def ended(episode):
    """What the episode earned. Raises RuntimeError where it failed."""
    traces = [trace for trace in episode.traces if trace.agent.trainable]
    if not episode.ok or not traces:
        errors = [*episode.errors, *(error for trace in traces for error in trace.errors)]
        raise RuntimeError("; ".join(f"{error.type}: {error.message}" for error in errors) or "the episode failed")
    return {"reward": sum(map(total, traces)) / len(traces), "stop": traces[-1].stop_condition,
            "metrics": {name: value for name, value in traces[-1].metrics.items() if value is not None}}  # fmt: skip


# --- the bridge -------------------------------------------------------------------------------------------------------


async def session(env, requests, answer):
    plays = []
    while (request := await asyncio.to_thread(next, requests, None)) is not None:
        try:
            reply = {"value": await handled(env, plays, request)}
        except Exception as exc:  # the border: other people's environment
            reply = {"raised": guest.shown(exc)}
        answer(reply)


async def handled(env, plays, request):
    match request["do"]:
        case "describe":
            return described(env)
        case "tasks":
            return tasks(env, request["limit"])
        case "score":
            return await score(env, request["rows"])
        case "start":
            plays.append(Play(env, task_of(env, request["task"])))
            return await plays[-1].start()
        case "reply":
            return await plays[-1].reply(request["message"], request["finish_reason"])
        case "stop":
            return await plays[-1].stop()
    raise ValueError(f"no request {request['do']!r}")


def main():
    global guest
    _, bridge_guest, spec, descriptor = sys.argv
    found = importlib.util.spec_from_file_location("bridge_guest", bridge_guest)
    guest = importlib.util.module_from_spec(found)
    found.loader.exec_module(guest)
    try:
        env = load(json.loads(spec))
    except Exception as exc:  # the border: reported with the end of the process
        sys.exit(guest.shown(exc))
    guest.serve(int(descriptor), lambda requests, answer: asyncio.run(session(env, requests, answer)))


if __name__ == "__main__":
    main()
