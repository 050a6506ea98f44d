import time, statistics, asyncio
from datetime import UTC, datetime
from tests.api.conftest import *
from tests.api.stack import record_running
def p(xs): xs=sorted(xs); return f"p50 {xs[len(xs)//2]*1e3:.1f} ms, p95 {xs[int(len(xs)*.95)]*1e3:.1f} ms, n={len(xs)}"
import api.temporal
api.temporal.COMMAND_SECONDS=30
async def timed(f,n):
    out=[]
    for _ in range(n):
        t=time.perf_counter(); r=await f(); out.append(time.perf_counter()-t); (print("SLOW", r.request.method, r.request.url.path, len(out), out[-1]) if out[-1]>1 else None); assert r.status_code<300, r.text
    return out
async def test_it(stack):
    h=stack.http; h.event_hooks={"response":[]}
    e=await stack.started()
    print()
    print("create", p(await timed(lambda: h.post("/desktop-environments", json={}),100)))
    print("start accepted", p(await timed(lambda: h.post(f"/desktop-environments/{e}/start"),200)))
    names=iter(["stop","start"]*100)
    print("stop/start alternating accepted", p(await timed(lambda: h.post(f"/desktop-environments/{e}/{next(names)}"),100)))
    print("detail", p(await timed(lambda: h.get(f"/desktop-environments/{e}"),200)))
    for _ in range(1000): record_running(stack.engine, stack.host_id, 1, status="stopped")
    print("list 50 of 1000", p(await timed(lambda: h.get("/desktop-environments"),100)))
    print("list 200 of 1000", p(await timed(lambda: h.get("/desktop-environments?limit=200"),100)))
    print("healthz", p(await timed(lambda: h.get("/healthz"),200)))
    print("hosts", p(await timed(lambda: h.get("/desktop-environment-hosts"),100)))
