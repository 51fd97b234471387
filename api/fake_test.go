package api_test

import (
	"context"
	"encoding/json"
	"time"

	"github.com/google/uuid"

	"medianest/api"
	"medianest/store"
)

// fakeStore knows one user for any token, and answers everything else with err: for faults that a real database cannot
// be made to have at will.
type fakeStore struct {
	user    store.User
	userErr error // of looking a token up
	err     error
	do      func(ctx context.Context) error // instead of err
}

var _ api.Store = (*fakeStore)(nil)

func (f *fakeStore) fail(ctx context.Context) error {
	if f.do != nil {
		return f.do(ctx)
	}
	return f.err
}

func (f *fakeStore) IdentifyToken(context.Context, [32]byte) (store.Identity, error) {
	user := f.user
	if user.Role == "" {
		user.Role = store.UserAdmin
	}
	return store.Identity{User: user, Token: &store.Token{}}, f.userErr
}

func (f *fakeStore) IdentifySession(context.Context, uuid.UUID) (store.Identity, error) {
	return store.Identity{User: f.user, Session: &store.Session{}}, f.userErr
}

func (f *fakeStore) IdentifyCode(context.Context, store.OneTime) (store.Identity, error) {
	return store.Identity{User: f.user, Token: &store.Token{}}, f.userErr
}

func (f *fakeStore) CreateSession(ctx context.Context, _ store.NewSession) (store.Session, error) {
	return store.Session{}, f.fail(ctx)
}

func (f *fakeStore) RenewSession(ctx context.Context, _, _ [32]byte) (store.Renewal, error) {
	return store.Renewal{}, f.fail(ctx)
}

func (f *fakeStore) ListSessions(ctx context.Context, _ uuid.UUID) ([]store.Session, error) {
	return nil, f.fail(ctx)
}

func (f *fakeStore) RevokeSession(ctx context.Context, _, _ uuid.UUID, _ string) error {
	return f.fail(ctx)
}

func (f *fakeStore) RevokeSessions(ctx context.Context, _ uuid.UUID, _ *uuid.UUID, _ string) (int64, error) {
	return 0, f.fail(ctx)
}

func (f *fakeStore) SignInWait(ctx context.Context, _ ...string) (time.Duration, error) {
	return 0, f.fail(ctx)
}

func (f *fakeStore) SignInFailed(ctx context.Context, _ ...string) error { return f.fail(ctx) }

func (f *fakeStore) SignInSucceeded(ctx context.Context, _ ...string) error { return f.fail(ctx) }

func (f *fakeStore) FindPassword(ctx context.Context, _ string) (store.User, string, error) {
	return store.User{}, "", f.fail(ctx)
}

func (f *fakeStore) SetPassword(ctx context.Context, _ uuid.UUID, _ string, _ *uuid.UUID) error {
	return f.fail(ctx)
}

func (f *fakeStore) ReplacePasswordHash(ctx context.Context, _ uuid.UUID, _, _ string) error {
	return f.fail(ctx)
}

func (f *fakeStore) AddOneTime(ctx context.Context, _ [32]byte, _ store.OneTime) error {
	return f.fail(ctx)
}

func (f *fakeStore) ReplaceOneTime(ctx context.Context, _ [32]byte, _ store.OneTime) error {
	return f.fail(ctx)
}

func (f *fakeStore) PeekOneTime(ctx context.Context, _ [32]byte, _ string) (store.OneTime, error) {
	return store.OneTime{}, f.fail(ctx)
}

func (f *fakeStore) TakeOneTime(ctx context.Context, _ [32]byte, _ string) (store.OneTime, error) {
	return store.OneTime{}, f.fail(ctx)
}

func (f *fakeStore) CreateToken(ctx context.Context, _ store.NewToken) (store.Token, error) {
	return store.Token{}, f.fail(ctx)
}

func (f *fakeStore) ListTokens(ctx context.Context, _ uuid.UUID) ([]store.Token, error) {
	return nil, f.fail(ctx)
}

func (f *fakeStore) RevokeToken(ctx context.Context, _ uuid.UUID, _ store.Viewer) error {
	return f.fail(ctx)
}

func (f *fakeStore) FindUser(ctx context.Context, id uuid.UUID) (store.User, error) {
	return store.User{ID: id}, f.fail(ctx)
}

func (f *fakeStore) ListUsers(ctx context.Context, _ string, _ int) ([]store.User, string, error) {
	return nil, "", f.fail(ctx)
}

func (f *fakeStore) CreateUser(ctx context.Context, _ store.NewUser) (store.User, error) {
	return store.User{}, f.fail(ctx)
}

func (f *fakeStore) UpdateUser(ctx context.Context, _ uuid.UUID, _ store.UserChange) (store.User, error) {
	return store.User{}, f.fail(ctx)
}

func (f *fakeStore) EraseUser(ctx context.Context, _ uuid.UUID) error { return f.fail(ctx) }

func (f *fakeStore) ExportUser(ctx context.Context, _ uuid.UUID, _ func(json.RawMessage) error) error {
	return f.fail(ctx)
}

func (f *fakeStore) FindUsage(ctx context.Context, _ uuid.UUID) (store.Usage, store.Quota, error) {
	return store.Usage{}, store.Quota{}, f.fail(ctx)
}

func (f *fakeStore) RoleQuotas(ctx context.Context) (map[string]store.Quota, error) {
	return nil, f.fail(ctx)
}

func (f *fakeStore) SetRoleQuota(ctx context.Context, _ string, _ store.Quota) error {
	return f.fail(ctx)
}

func (f *fakeStore) ListAccessRules(ctx context.Context) ([]store.AccessRule, error) {
	return nil, f.fail(ctx)
}

func (f *fakeStore) SetAccessRule(ctx context.Context, r store.AccessRule, _ store.RuleSetter) (store.AccessRule, error) {
	return r, f.fail(ctx)
}

func (f *fakeStore) DeleteAccessRule(ctx context.Context, _ string) error { return f.fail(ctx) }

func (f *fakeStore) AddAudit(ctx context.Context, _ store.AuditEntry) error { return f.fail(ctx) }

func (f *fakeStore) CreateDownload(ctx context.Context, _ store.NewDownload) (store.Download, bool, error) {
	return store.Download{}, true, f.fail(ctx)
}

func (f *fakeStore) FindDownload(ctx context.Context, id uuid.UUID, _ store.Viewer) (store.Download, error) {
	return store.Download{ID: id}, f.fail(ctx)
}

func (f *fakeStore) ListDownloads(ctx context.Context, _ store.DownloadFilter) ([]store.Download, string, error) {
	return nil, "", f.fail(ctx)
}

func (f *fakeStore) CancelDownload(ctx context.Context, _ uuid.UUID, _ store.Viewer) (store.Download, error) {
	return store.Download{}, f.fail(ctx)
}

func (f *fakeStore) RetryDownload(ctx context.Context, _ uuid.UUID, _ store.Viewer) (store.Download, error) {
	return store.Download{}, f.fail(ctx)
}

func (f *fakeStore) DeleteDownload(ctx context.Context, _ uuid.UUID, _ store.Viewer) error {
	return f.fail(ctx)
}

func (f *fakeStore) FindJob(ctx context.Context, id int64, _ store.Viewer) (store.Job, error) {
	return store.Job{ID: id}, f.fail(ctx)
}

func (f *fakeStore) ListJobs(ctx context.Context, _ store.JobFilter) ([]store.Job, string, error) {
	return nil, "", f.fail(ctx)
}

func (f *fakeStore) CurrentRow(ctx context.Context, id int64) (store.JobRow, error) {
	return store.JobRow(id), f.fail(ctx)
}

func (f *fakeStore) ListWorkers(ctx context.Context) ([]store.Worker, error) {
	return nil, f.fail(ctx)
}

func (f *fakeStore) AskDrain(ctx context.Context, id string) (store.Worker, error) {
	return store.Worker{ID: id}, f.fail(ctx)
}

func (f *fakeStore) ListLimits(ctx context.Context, _ string, _ int) ([]store.Limit, string, error) {
	return nil, "", f.fail(ctx)
}

func (f *fakeStore) FindLimit(ctx context.Context, key string) (store.Limit, error) {
	return store.Limit{Key: key}, f.fail(ctx)
}

func (f *fakeStore) SetLimit(ctx context.Context, l store.Limit) (store.Limit, error) {
	return l, f.fail(ctx)
}

func (f *fakeStore) DeleteLimit(ctx context.Context, _ string) error {
	return f.fail(ctx)
}

func (f *fakeStore) ListBreakers(ctx context.Context, _ string, _ int) ([]store.Breaker, string, error) {
	return nil, "", f.fail(ctx)
}

func (f *fakeStore) ResetBreaker(ctx context.Context, _ string) error {
	return f.fail(ctx)
}

func (f *fakeStore) ListPauses(ctx context.Context) ([]store.Pause, error) {
	return nil, f.fail(ctx)
}

func (f *fakeStore) SetPause(ctx context.Context, p store.Pause) (store.Pause, error) {
	return p, f.fail(ctx)
}

func (f *fakeStore) DeletePause(ctx context.Context, _ string) error {
	return f.fail(ctx)
}

func (f *fakeStore) CancelJob(ctx context.Context, _ int64, _ store.Viewer) (store.Job, error) {
	return store.Job{}, f.fail(ctx)
}

func (f *fakeStore) BeginAudit(ctx context.Context, _ store.AuditEntry) (int64, error) {
	return 0, f.fail(ctx)
}

func (f *fakeStore) EndAudit(context.Context, int64, int, map[string]any) error { return nil }

func (f *fakeStore) ListAudit(ctx context.Context, _ store.AuditFilter) ([]store.AuditEntry, string, error) {
	return nil, "", f.fail(ctx)
}

func (f *fakeStore) VerifyAudit(ctx context.Context) (store.AuditProof, error) {
	return store.AuditProof{}, f.fail(ctx)
}

func (f *fakeStore) SetSecret(ctx context.Context, _ string, _ []byte, _, _ *uuid.UUID) (store.Secret, error) {
	return store.Secret{}, f.fail(ctx)
}

func (f *fakeStore) ListSecrets(ctx context.Context, _ string, _ int) ([]store.Secret, string, error) {
	return nil, "", f.fail(ctx)
}

func (f *fakeStore) DeleteSecret(ctx context.Context, _ string) error { return f.fail(ctx) }

func (f *fakeStore) RotateSecrets(ctx context.Context) (store.Rotation, error) {
	return store.Rotation{}, f.fail(ctx)
}

func (f *fakeStore) FindUserByIdentity(ctx context.Context, _ store.ExternalIdentity) (store.User, error) {
	return store.User{}, f.fail(ctx)
}

func (f *fakeStore) LinkIdentity(ctx context.Context, _ uuid.UUID, _ store.ExternalIdentity) error {
	return f.fail(ctx)
}

func (f *fakeStore) SupersededRows(ctx context.Context, _ []int64) ([]int64, error) {
	return nil, f.fail(ctx)
}

func (f *fakeStore) CountJobs(ctx context.Context, _ string, _ store.JobFilter) (map[string]int, bool, error) {
	return nil, false, f.fail(ctx)
}

func (f *fakeStore) ChangeJobs(ctx context.Context, _ string, _ store.JobFilter, _ int64, _ time.Time) (store.BulkDone, error) {
	return store.BulkDone{}, f.fail(ctx)
}

func (f *fakeStore) RetryFailedChildren(ctx context.Context, _ uuid.UUID, _ store.Viewer) (int, error) {
	return 0, f.fail(ctx)
}

func (f *fakeStore) ListAttempts(ctx context.Context, _ int64, _ store.Viewer) ([]store.Attempt, error) {
	return nil, f.fail(ctx)
}

func (f *fakeStore) TailLog(ctx context.Context, _, _ int64, _ int, _ store.Viewer) ([]store.LogLine, error) {
	return nil, f.fail(ctx)
}

func (f *fakeStore) DownloadNow(ctx context.Context, _ uuid.UUID, _ store.Viewer) (store.Download, error) {
	return store.Download{}, f.fail(ctx)
}

func (f *fakeStore) SetJobPriority(ctx context.Context, _ int64, _ int, _ store.Viewer) (store.Job, error) {
	return store.Job{}, f.fail(ctx)
}

func (f *fakeStore) RetryJob(ctx context.Context, _ int64, _ store.Viewer) (store.Job, error) {
	return store.Job{}, f.fail(ctx)
}

func (f *fakeStore) ScheduleKinds() ([]store.ScheduleKind, error) {
	return nil, f.fail(context.Background())
}

func (f *fakeStore) ListSchedules(ctx context.Context, _ string, _ int) ([]store.Schedule, string, error) {
	return nil, "", f.fail(ctx)
}

func (f *fakeStore) FindSchedule(ctx context.Context, id uuid.UUID) (store.Schedule, error) {
	return store.Schedule{ID: id}, f.fail(ctx)
}

func (f *fakeStore) CreateSchedule(ctx context.Context, _ store.ScheduleSpec, _ uuid.UUID) (store.Schedule, error) {
	return store.Schedule{}, f.fail(ctx)
}

func (f *fakeStore) UpdateSchedule(
	ctx context.Context, id uuid.UUID, _ int64, _ store.ScheduleSpec, _ uuid.UUID,
) (store.Schedule, error) {
	return store.Schedule{ID: id}, f.fail(ctx)
}

func (f *fakeStore) PauseSchedule(ctx context.Context, id, _ uuid.UUID) (store.Schedule, error) {
	return store.Schedule{ID: id}, f.fail(ctx)
}

func (f *fakeStore) ResumeSchedule(ctx context.Context, id, _ uuid.UUID) (store.Schedule, error) {
	return store.Schedule{ID: id}, f.fail(ctx)
}

func (f *fakeStore) DeleteSchedule(ctx context.Context, _ uuid.UUID) error { return f.fail(ctx) }

func (f *fakeStore) RunScheduleNow(ctx context.Context, id uuid.UUID) (store.ScheduleRun, error) {
	return store.ScheduleRun{ScheduleID: id}, f.fail(ctx)
}

func (f *fakeStore) ListScheduleRuns(
	ctx context.Context, _ uuid.UUID, _ string, _ int,
) ([]store.ScheduleRun, string, error) {
	return nil, "", f.fail(ctx)
}
