"""channels_redis: both of its layers.

    channel_layers.py HOST PORT
"""

import asyncio
import sys

from channels_redis.core import RedisChannelLayer
from channels_redis.pubsub import RedisPubSubChannelLayer

URL = f"redis://{sys.argv[1]}:{sys.argv[2]}"


async def use(make):
    sender, receiver = make(), make()
    # To one channel, in order.
    channel = await receiver.new_channel()
    waiting = asyncio.create_task(receiver.receive(channel))
    await asyncio.sleep(0.1)
    await sender.send(channel, {"type": "text", "n": 0, "bytes": b"\x00\r\n"})
    assert (await asyncio.wait_for(waiting, 10))["bytes"] == b"\x00\r\n"
    for number in range(50):
        await sender.send(channel, {"type": "text", "n": number})
    got = [(await asyncio.wait_for(receiver.receive(channel), 10))["n"] for _ in range(50)]
    assert got == list(range(50)), got
    # To a group of many, of which some leave.
    channels = [await receiver.new_channel() for _ in range(20)]
    for name in channels:
        await receiver.group_add("group", name)
    await asyncio.sleep(0.2)  # the layer over PUBLISH does not wait for its subscription to be confirmed
    await sender.group_send("group", {"type": "all", "n": 1})
    for name in channels:
        message = await asyncio.wait_for(receiver.receive(name), 10)
        assert message == {"type": "all", "n": 1}, message
    for name in channels[:10]:
        await receiver.group_discard("group", name)
    await sender.group_send("group", {"type": "all", "n": 2})
    for name in channels[10:]:
        message = await asyncio.wait_for(receiver.receive(name), 10)
        assert message["n"] == 2, message
    # Many wait at once.
    waiting = [asyncio.create_task(receiver.receive(name)) for name in channels]
    await asyncio.sleep(0.1)
    for number, name in enumerate(channels):
        await sender.send(name, {"type": "own", "n": number})
    got = await asyncio.wait_for(asyncio.gather(*waiting), 10)
    assert [message["n"] for message in got] == list(range(20)), got
    await sender.flush()
    for layer in (sender, receiver):
        close = getattr(layer, "close_pools", None) or layer.flush
        await close()


asyncio.run(use(lambda: RedisChannelLayer(hosts=[URL])))
asyncio.run(use(lambda: RedisPubSubChannelLayer(hosts=[URL])))
print("done")
