"""Decodes a Perfetto trace with Perfetto's own messages and says what is in it."""

import sys
from perfetto.protos.perfetto.trace import perfetto_trace_pb2

trace = perfetto_trace_pb2.Trace()
with open(sys.argv[1], "rb") as file:
    trace.ParseFromString(file.read())

names, frames, callstacks, tracks, levels, heaps, functions = {}, {}, {}, {}, {}, {}, {}
unresolved = 0
for packet in trace.packet:
    for name in packet.interned_data.function_names:
        names[name.iid] = name.str.decode()
    for frame in packet.interned_data.frames:
        frames[frame.iid] = names[frame.function_name_id]
    for callstack in packet.interned_data.callstacks:
        callstacks[callstack.iid] = [frames[iid] for iid in callstack.frame_ids]
    if packet.HasField("track_descriptor"):
        tracks[packet.track_descriptor.uuid] = packet.track_descriptor.name
    if packet.HasField("track_event"):
        levels[packet.track_event.track_uuid] = packet.track_event.counter_value
    for dump in packet.profile_packet.process_dumps:
        heap = heaps.setdefault(dump.heap_name, [0, 0, 0, 0])
        for sample in dump.samples:
            live = sample.self_allocated - sample.self_freed
            heap[0] += sample.self_allocated
            heap[1] += sample.alloc_count
            heap[2] += live
            heap[3] += sample.alloc_count - sample.free_count
            if sample.callstack_id not in callstacks:
                unresolved += 1
                continue
            inner = callstacks[sample.callstack_id][-1]
            functions[inner] = functions.get(inner, 0) + live

for name, (allocated, allocations, live, blocks) in heaps.items():
    print(f"heap {name} allocated {allocated} in {allocations}")
    print(f"heap {name} live {live} in {blocks}")
for name, live in functions.items():
    print(f"{name} {live}")
for uuid, level in levels.items():
    print(f"counter {tracks[uuid]} {level}")
print(f"unresolved {unresolved}")
