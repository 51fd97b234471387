package jobs

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"

	"github.com/google/uuid"

	"medianest/jobs/media"
	"medianest/jobs/queue"
	"medianest/jobs/ytdlp"
	"medianest/store"
)

// Library is where films end up. *media.Library is one. Paths that are relative are so to its root, with slashes.
type Library interface {
	// Root is the library's folder, absolute.
	Root() string
	// Volume is the id of the volume that it is on.
	Volume() string
	// Stage returns a folder for one fetch, on the library's file system, with what an earlier one has left, if it did.
	Stage(ctx context.Context, contentID uuid.UUID, generation int) (dir string, resumed bool, err error)
	// Release keeps what this fetch has left for the next one. Nobody writes there any more.
	Release(contentID uuid.UUID, generation int) error
	// Discard removes what this fetch and earlier ones have left.
	Discard(contentID uuid.UUID, generation int) error
	// Verify tells whether the file is a whole film, which should last so long if that is above 0.
	Verify(ctx context.Context, path string, wantDurationS float64) (media.Info, error)
	// Publish puts a staged file into a user's folder and returns where.
	Publish(ctx context.Context, staged, userName, fileName string, sum []byte) (rel string, err error)
	// Link gives a user a path to a file that the library has.
	Link(ctx context.Context, existing, userName, fileName string, sum []byte) (rel string, err error)
	// Remove removes a file; one that is gone is no error.
	Remove(rel string) error
	// SweepStaging removes what fetches have left of contents that are not to be kept.
	SweepStaging(keep func(contentID uuid.UUID) bool) error
}

// errNotThere says that a wish cannot be met with what is in the library.
var errNotThere = errors.New("not in the library yet")

// linkExisting gives those who lack it a path to what is in the library already, and completes the job. With nobody to
// wish for it any more it just completes the job: a cancel here could hit somebody who joins at this moment.
// errNotThere if it has to be fetched.
func (a *attempt) linkExisting(ctx context.Context) error {
	if len(a.thatAreThere(a.fetch.Files)) == 0 && len(a.fetch.Wishes) > 0 {
		return errNotThere
	}
	return a.publish(ctx, func(ctx context.Context, wishes []store.Wish, existing []store.File) ([]store.File, error) {
		var made []store.File
		a.placed, existing = nil, a.thatAreThere(existing)
		for _, wish := range without(wishes, existing) {
			file, err := a.linkAny(ctx, wish, existing)
			if err != nil {
				return nil, err
			}
			a.placed = append(a.placed, file)
			made = append(made, file)
		}
		return made, nil
	})
}

// linkAny links one of the files that users have, all of the same film; they may be gone meanwhile.
func (a *attempt) linkAny(ctx context.Context, wish store.Wish, from []store.File) (store.File, error) {
	for _, f := range from {
		content := a.fetch.Content
		name := media.FileName(content.Title, content.ExtractorID, path.Ext(f.Path))
		rel, err := a.library.Link(ctx, f.Path, wish.UserName, name, f.SHA256)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return store.File{}, err
		}
		return store.File{UserID: wish.UserID, Path: rel, SizeBytes: f.SizeBytes, SHA256: f.SHA256}, nil
	}
	return store.File{}, errNotThere
}

// publishFetched verifies the staged film, puts it into the library for all who wish for it by now, and completes the
// job.
func (a *attempt) publishFetched(ctx context.Context, probe ytdlp.Probe, fetched ytdlp.Media) error {
	a.report.phase(phaseVerifying)
	var info media.Info
	err := traced(ctx, "verify", func(ctx context.Context) (err error) {
		info, err = a.library.Verify(ctx, fetched.Path, probe.DurationS)
		return err
	})
	if err != nil {
		return err
	}
	queue.Say(ctx, queue.Info, "Fetched and found whole: %.0f s, %.1f MB.", info.DurationS, float64(info.SizeBytes)/1e6)
	// Here, and not first inside the transaction, which others wait for.
	if err := persist(fetched.Path); err != nil {
		return err
	}
	name := media.FileName(probe.Title, probe.ID, fetched.Ext)
	return a.publish(ctx, func(ctx context.Context, wishes []store.Wish, existing []store.File) ([]store.File, error) {
		var made []store.File
		a.placed, existing = nil, a.thatAreThere(existing)
		for _, wish := range without(wishes, existing) {
			file := store.File{UserID: wish.UserID, SizeBytes: info.SizeBytes, SHA256: info.SHA256}
			var err error
			if len(made) == 0 {
				file.Path, err = a.library.Publish(ctx, fetched.Path, wish.UserName, name, info.SHA256)
			} else {
				file.Path, err = a.library.Link(ctx, made[0].Path, wish.UserName, name, info.SHA256)
			}
			if err != nil {
				return nil, err
			}
			a.placed = append(a.placed, file)
			made = append(made, file)
		}
		return made, nil
	})
}

// publish records what link makes and completes the job, in one transaction, and bears with a database that is away for
// a while: link may be called again.
func (a *attempt) publish(ctx context.Context, link store.LinkFunc) error {
	a.report.phase(phasePublishing)
	err := patiently(ctx, func() error {
		select {
		case a.publishing <- struct{}{}:
			defer func() { <-a.publishing }()
		case <-ctx.Done():
			return ctx.Err()
		}
		return a.store.Publish(ctx, a.fetch.Content.ID, a.row, link, a.complete)
	})
	if err = a.unlessDone(ctx, err); err != nil {
		a.takeBack(ctx)
		return err
	}
	queue.Say(ctx, queue.Info, "It is in the library.")
	return nil
}

// persist brings a file's bytes to the disk.
func persist(name string) error {
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(file.Sync(), file.Close())
}

// takeBack removes from the library what was placed in a transaction that was not committed after all. Where that
// cannot be found out, or the next attempt has begun, the files stay: it takes them over.
func (a *attempt) takeBack(ctx context.Context) {
	if len(a.placed) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTimeout)
	defer cancel()
	// A commit may be under way although its answer was not waited for. Writing the row that the transaction has locked
	// waits for the end of it, whichever way.
	if err := a.store.SaveFailure(ctx, a.fetch.Content.ID, a.fetch.Generation, ""); err != nil {
		a.log.WarnContext(ctx, "files left in the library", "err", err)
		return
	}
	if err := a.store.RemoveUnrecorded(ctx, a.placed, a.library.Remove); err != nil {
		a.log.WarnContext(ctx, "files left in the library", "err", err)
	}
}

// unlessDone takes ErrSuperseded back where the job is completed: by ourselves, in a transaction whose commit was done
// but not answered. A job that goes on as another row may be completed too, but that is another's doing.
func (a *attempt) unlessDone(ctx context.Context, err error) error {
	if !errors.Is(err, store.ErrSuperseded) {
		return err
	}
	job, findErr := a.store.FindJob(ctx, a.publicID, store.Viewer{Admin: true})
	if findErr == nil && job.Row == a.row && job.State == "completed" {
		return nil
	}
	return err
}

// thatAreThere returns the files that are in the library, and not only on record: people may tidy up by hand.
func (a *attempt) thatAreThere(files []store.File) []store.File {
	return slices.DeleteFunc(slices.Clone(files), func(f store.File) bool {
		info, err := os.Lstat(filepath.Join(a.library.Root(), filepath.FromSlash(f.Path)))
		if err != nil {
			return errors.Is(err, fs.ErrNotExist)
		}
		return info.Size() != f.SizeBytes
	})
}

// without returns the wishes of users who have no file.
func without(wishes []store.Wish, files []store.File) []store.Wish {
	return slices.DeleteFunc(slices.Clone(wishes), func(w store.Wish) bool {
		return slices.ContainsFunc(files, func(f store.File) bool { return f.UserID == w.UserID })
	})
}
