-- task_started: a task has started; the side effects free the deduplication key that it held until then.
-- KEYS: side_effect...
-- ARGV: side_effect...
-- Returns 1.
check_side_effects(1, 1)
if KEYS[1] then begin_settling(KEYS[1]) end
carry_out(1, 1)
return 1
