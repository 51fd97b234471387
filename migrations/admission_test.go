package migrations_test

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"medianest/migrations"
)

// beforeAdmission is the newest migration without it.
const beforeAdmission = 4

const insertKeyedJob = `
	INSERT INTO river.river_job (args, kind, max_attempts, metadata)
	VALUES ('{}', 'k', 1, '{"keys": ["host:a"]}')`

// waits are the jobs that admission knows of, with what is known.
func (b *bundle) waits(t *testing.T) []string {
	t.Helper()
	rows, err := b.pool.Query(t.Context(), `
		SELECT format('%s %s %s %s %s', row_id, queue, array_to_string(keys, ','), user_key,
			CASE WHEN admitted_at IS NULL THEN 'waits' ELSE 'holds' END)
		FROM medianest.admission
		ORDER BY row_id`)
	require.NoError(t, err)
	found, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	return found
}

// Without admission nobody would make what waits for it available; with it again, what is available holds its keys.
func TestDownOfAdmissionLetsGoWhatWaits(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.up(t)
	b.exec(t, insertKeyedJob)
	b.exec(t, `INSERT INTO river.river_job (id, args, kind, max_attempts, state) VALUES (900, '{}', 'k', 1, 'pending')`)

	require.NoError(t, migrations.Down(t.Context(), b.pool, len(b.status(t).Migrations)-beforeAdmission, b.log))
	states := func() (states []string) {
		rows, err := b.pool.Query(t.Context(), `SELECT state::text FROM river.river_job ORDER BY id`)
		require.NoError(t, err)
		states, err = pgx.CollectRows(rows, pgx.RowTo[string])
		require.NoError(t, err)
		return states
	}
	require.Equal(t, []string{"available", "pending"}, states(), "what is pending for others' reasons stays so")
	b.exec(t, insertKeyedJob)
	require.Contains(t, states(), "available")
	b.up(t)
	require.Len(t, b.waits(t), 2)
	require.Contains(t, b.waits(t)[0], "host:a  holds")
	b.exec(t, insertKeyedJob)
	require.Contains(t, b.waits(t)[2], "host:a  waits")
}

// Where triggers were away, as in a restore or by somebody's hand, what they keep does not fit any more.
func TestUpMakesAdmissionFit(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.up(t)
	b.exec(t, `ALTER TABLE river.river_job DISABLE TRIGGER USER`)
	b.exec(t, `
		INSERT INTO river.river_job (id, args, kind, max_attempts, queue, state, finalized_at, metadata)
		VALUES (101, '{}', 'k', 1, 'q', 'pending', NULL, '{"keys": ["user:1", "host:a"]}'),
			(102, '{}', 'k', 1, 'q', 'available', NULL, '{"keys": ["host:a"]}'),
			(103, '{}', 'k', 1, 'q', 'running', NULL, '{"keys": ["host:b"]}'),
			(104, '{}', 'k', 1, 'q', 'completed', now(), '{"keys": ["host:a"]}'),
			(105, '{}', 'k', 1, 'q', 'pending', NULL, '{}'),
			(106, '{}', 'k', 1, 'q', 'pending', NULL, '{"keys": 7}')`)
	b.exec(t, `
		INSERT INTO medianest.admission (row_id, queue, priority, keys, user_key, scheduled_at, admitted_at)
		VALUES (103, 'old', 1, '{host:old}', '', now(), NULL), (104, 'q', 1, '{host:a}', '', now(), now()),
			(99, 'q', 1, '{host:a}', '', now(), now())`)
	require.ErrorIs(t, migrations.Check(t.Context(), b.pool), migrations.ErrSchemaOld)
	b.up(t)
	require.Equal(t, []string{
		"101 q host:a,user:1 user:1 waits", "102 q host:a  holds", "103 q host:b  holds", "106 q   waits",
	}, b.waits(t))
	require.NoError(t, migrations.Check(t.Context(), b.pool))
}

// A release that brings both, River's migrations and admission: while River's are applied, the former triggers are in
// force, which know nothing of it.
func TestRiverIsMigratedBeforeAdmission(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.up(t)
	require.NoError(t, migrations.Down(t.Context(), b.pool, len(b.status(t).Migrations)-beforeAdmission, b.log))
	require.NoError(t, migrations.RiverDownTo(t.Context(), b.pool, 6))

	stop, inserted, started := make(chan struct{}), make(chan int, 1), make(chan struct{})
	go func() {
		n := 0
		for {
			if _, err := b.pool.Exec(context.Background(), insertKeyedJob); err != nil {
				t.Errorf("insert while migrating: %v", err)
			}
			if n++; n == 1 {
				close(started)
			}
			select {
			case <-stop:
				inserted <- n
				return
			default:
			}
		}
	}()
	<-started
	b.up(t)
	close(stop)
	n := <-inserted
	require.Contains(t, b.out.String(), "river 007_")
	require.Len(t, b.events(t), n)
	require.Len(t, b.waits(t), n)
	require.True(t, b.status(t).UpToDate())
}

// The triggers run as the owner of the tables, in the sessions of roles that own nothing: whatever such a session calls its
// functions, operators and types, the triggers use their own.
func TestTriggersLookNothingUpInTheCallersPath(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.up(t)
	conn, err := b.pool.Acquire(t.Context())
	require.NoError(t, err)
	defer conn.Release()
	run := func(sql string) {
		t.Helper()
		_, err := conn.Exec(t.Context(), sql)
		require.NoError(t, err, sql)
	}
	run(`CREATE SCHEMA evil; GRANT ALL ON SCHEMA evil TO PUBLIC; GRANT USAGE ON SCHEMA evil TO PUBLIC`)
	run(`CREATE FUNCTION evil.take() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'taken over'; END $$`)
	trap := func(name, params, returns string) {
		run(`CREATE FUNCTION evil.` + name + `(` + params + `) RETURNS ` + returns + ` LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'taken over by ` + name + `'; END $$`)
	}
	operator := func(symbol, name, left, right, returns string) {
		trap(name, left+", "+right, returns)
		run(`CREATE OPERATOR evil.` + symbol + ` (LEFTARG = ` + left + `, RIGHTARG = ` + right + `, FUNCTION = evil.` + name + `)`)
	}
	for _, of := range []string{"text", "bigint", "smallint", "jsonb", "timestamptz", "integer", "river.river_job_state"} {
		operator("=", "equal", of, of, "boolean")
		operator("<>", "unequal", of, of, "boolean")
	}
	operator("?", "has", "jsonb", "text", "boolean")
	operator("->", "member", "jsonb", "text", "jsonb")
	operator("->>", "member_text", "jsonb", "text", "text")
	operator("~", "matches", "text", "text", "boolean")
	operator("||", "joined", "text", "text", "text")
	trap("now", "", "timestamptz")
	trap("clock_timestamp", "", "timestamptz")
	trap("md5", "text", "text")
	trap("octet_length", "text", "integer")
	trap("starts_with", "text, text", "boolean")
	trap("jsonb_typeof", "jsonb", "text")
	trap("jsonb_array_elements_text", "jsonb", "SETOF text")
	trap("unnest", "text[]", "SETOF text")
	trap("current_setting", "text, boolean", "text")
	for _, name := range []string{"text", "timestamptz", "jsonb", "river_job_state"} {
		run(`CREATE DOMAIN evil.` + name + ` AS pg_catalog.int4 CHECK (evil.take())`)
	}

	run(`SET ROLE medianest_river; SET search_path = evil, pg_catalog`)
	run(`INSERT INTO river.river_job (id, args, kind, max_attempts, metadata) VALUES
		(1, '{}', 'k', 1, '{"keys": ["host:a", "user:b"]}'), (2, '{}', 'k', 1, '{"public_id": "1"}'), (3, '{}', 'k', 1, '{}')`)
	run(`UPDATE river.river_job SET priority = 2`)
	run(`UPDATE river.river_job SET metadata = '{"keys": ["host:c"], "reason": "network", "reason_attempt": "0"}', state = 'running'`)
	run(`UPDATE river.river_job SET state = 'completed', finalized_at = '2026-01-02T03:04:05Z', metadata = '{"superseded_by": 7}'`)
	run(`UPDATE river.river_job SET state = 'available', finalized_at = NULL`)
	run(`DELETE FROM river.river_job`)
	run(`RESET ROLE; RESET search_path`)
}
