-- operation_replay: an operation replays a dead letter (see _replay.lua), and goes on to it, in one step.
-- KEYS: operation dead stream [dedup latest] [workflow]
-- ARGV: from examined ttl_ms held_error dead_entry_id id dead_task_id dedup_ttl_ms mark step number_of_later later_result... field value...
-- Returns what replay does, or {'', '', why}: it may not go on from there ('gone', 'moved', or its state).
local why = kept_from(KEYS[1], ARGV[1])
if why then return {'', '', why} end
local found = replay_letter({unpack(KEYS, 2)}, 4)
local held = found[2] ~= ''
go_on(KEYS[1], ARGV[5], ARGV[3], ARGV[2], found[1] ~= '' and 1 or 0, held and 1 or 0, held and ARGV[4] or '')
return found
