-- The failed downloads of a user who has tens of thousands, of which few or none failed: by the user or by the state alone, all
-- of those are looked at. Only what failed or was cancelled pays for it.
CREATE INDEX downloads_user_id_state_idx ON medianest.downloads (user_id, state, id DESC)
    WHERE parent_id IS NULL AND state IN ('failed', 'cancelled');
