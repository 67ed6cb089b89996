-- replay: one dead letter becomes a task again (see _replay.lua).
-- KEYS: dead stream [dedup latest] [workflow]
-- ARGV: dead_entry_id id dead_task_id dedup_ttl_ms mark step number_of_later later_result... field value...
-- Returns {entry, ''}: the new entry's id. {'', ''}: the dead letter is gone. {'', id}: the task that holds the key.
return replay_letter(KEYS, 0)
