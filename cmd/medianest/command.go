package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"
)

// command is one subcommand: its flags and what it does with the arguments that are left.
type command interface {
	flags(*flag.FlagSet)
	run(ctx context.Context, p process, args []string) error
}

// entry is a line of the help: the table below is the program's table of contents.
type entry struct {
	name    string
	args    string
	summary string
	help    string // paragraphs under the usage line of `medianest NAME -h`
	make    func() command
}

func entries() []entry {
	return []entry{
		{
			"up", "", "run everything on this machine: API, worker, embedded Postgres and Redis",
			`Starts the whole platform in one process. Without MEDIANEST_DATABASE_URL it keeps a private Postgres under
MEDIANEST_DATA_DIR (./data), without MEDIANEST_REDIS_URL it brings its own Redis. The first start creates the user admin
an API token in MEDIANEST_DATA_DIR/admin-token, and a code to set a password with in setup-code beside it. Ctrl-C or SIGTERM stops it: running downloads are handed back to the
queue and go on at the next start. A second one ends it at once.`,
			func() command { return &upCommand{} },
		},
		{
			"serve", "", "run an API replica: HTTP, event stream, River UI",
			`Serves the API on MEDIANEST_LISTEN. Needs MEDIANEST_DATABASE_URL with a migrated schema and MEDIANEST_REDIS_URL. Run as many
as you like.`,
			func() command { return &serveCommand{} },
		},
		{
			"work", "", "run a worker replica: the jobs, with yt-dlp and the media volume",
			`Works jobs from the queues in MEDIANEST_WORKER_QUEUES and publishes files under MEDIANEST_MEDIA_DIR. Needs
MEDIANEST_DATABASE_URL with a migrated schema and MEDIANEST_REDIS_URL. Run as many as you like on the same media volume.`,
			func() command { return &workCommand{} },
		},
		{
			"migrate", "up | down N | status", "bring the database's schema to this build, back, or say where it is",
			`up      applies what is missing, ours and River's, under one lock; safe to run any number of times, and from several
        places at once. Creates the user admin, its token and set-up code, and the secret keys in
        MEDIANEST_DATA_DIR where there are none yet.
down N  takes back the last N of our migrations. It deletes what they hold.
status  lists them.`,
			func() command { return &migrateCommand{} },
		},
		{
			"download", "URL...", "download URLs through the API and watch them",
			`Asks the platform for each URL, follows the downloads live and exits 0 when all are complete, 1 when one failed, 130 when
interrupted. On a terminal Ctrl-C asks whether to cancel them; elsewhere they are left running.`,
			func() command { return &downloadCommand{} },
		},
		{
			"user", "list | invite | change | disable | enable | erase [NAME]", "manage who uses the platform",
			`list          shows the users
invite NAME   makes the user, or one that is there a new invitation, and prints the link that sets the password
change NAME   gives another role: --role manager
disable NAME  signs the user out everywhere and refuses their tokens, until enable
erase NAME    removes the user with all downloads and files, for good: --yes`,
			func() command { return &userCommand{} },
		},
		{
			"token", "list | create NAME | rotate ID | revoke ID", "manage API tokens",
			`create prints the secret on standard output, once: nobody keeps it. --scopes, --networks and --expires make a token that can
do less, from fewer places, for a while. rotate makes a new one like it, then revokes the old one.`,
			func() command { return &tokenCommand{} },
		},
		{
			"config", "", "print the effective settings, secrets masked",
			`Prints every setting as the environment, files and defaults make it, with what it means. Exits 2 and lists all faults when
something is wrong.`,
			func() command { return &configCommand{} },
		},
		{
			"healthcheck", "", "ask a running process on this machine whether it is ready, for containers",
			`Exits 0 when the process that runs with the same settings answers that it is ready, else 1 with the checks that fail.`,
			func() command { return &healthcheckCommand{} },
		},
		{
			"version", "", "print the version of this program and of the tools it finds",
			`Prints versions, one per line. Tools that are missing are said to be missing; that is no failure.`,
			func() command { return &versionCommand{} },
		},
	}
}

// dispatch finds the subcommand, parses its flags and runs it.
func dispatch(ctx context.Context, p process) error {
	if len(p.args) == 0 {
		printUsage(p.stderr)
		return &exitError{code: exitUsage}
	}
	name, rest := p.args[0], p.args[1:]
	switch name {
	case "help", "-h", "-help", "--help":
		if name == "help" && len(rest) > 0 {
			name, rest = rest[0], []string{"-h"}
			break
		}
		printUsage(p.stdout)
		return nil
	case "-version", "--version":
		name = "version"
	}
	for _, e := range entries() {
		if e.name == name {
			return e.run(ctx, p, rest)
		}
	}
	names := make([]string, 0, len(entries()))
	for _, e := range entries() {
		names = append(names, e.name)
	}
	hint := "medianest help lists the commands"
	if near := nearest(name, names); near != "" {
		hint = "did you mean " + near + "?"
	}
	return usageError("there is no command %q; %s", name, hint)
}

func (e entry) run(ctx context.Context, p process, args []string) error {
	c := e.make()
	set := flag.NewFlagSet(e.name, flag.ContinueOnError)
	set.SetOutput(io.Discard) // its errors are ours to print, once
	c.flags(set)
	positional, err := parseInterspersed(set, args)
	if errors.Is(err, flag.ErrHelp) {
		e.printHelp(p.stdout, set)
		return err
	}
	if err != nil {
		return usageError("%s: %v; medianest %s -h says what it takes", e.name, err, e.name)
	}
	if e.args == "" && len(positional) > 0 {
		return usageError("%s takes no arguments, but was given %q", e.name, positional[0])
	}
	return c.run(ctx, p, positional)
}

// parseInterspersed parses flags before, between and after the arguments; after "--" everything is an argument.
func parseInterspersed(set *flag.FlagSet, args []string) ([]string, error) {
	var positional []string
	for {
		if err := set.Parse(args); err != nil {
			return nil, err
		}
		rest := set.Args()
		consumed := args[:len(args)-len(rest)]
		if len(rest) == 0 || len(consumed) > 0 && consumed[len(consumed)-1] == "--" {
			return append(positional, rest...), nil
		}
		positional, args = append(positional, rest[0]), rest[1:]
	}
}

func printUsage(w io.Writer) {
	fmt.Fprint(w, "medianest downloads media into your library and never loses a job.\n\nusage: medianest COMMAND [flags] [arguments]\n\n")
	for _, e := range entries() {
		fmt.Fprintf(w, "  %-12s %s\n", e.name, e.summary)
	}
	fmt.Fprint(w, "\nmedianest COMMAND -h says more of one. Settings are environment variables: medianest config lists them.\n")
}

func (e entry) printHelp(w io.Writer, set *flag.FlagSet) {
	usage := []string{"medianest", e.name}
	hasFlags := false
	set.VisitAll(func(*flag.Flag) { hasFlags = true })
	if hasFlags {
		usage = append(usage, "[flags]")
	}
	if e.args != "" {
		usage = append(usage, e.args)
	}
	fmt.Fprintf(w, "usage: %s\n\n%s: %s.\n\n%s\n", strings.Join(usage, " "), e.name, e.summary, e.help)
	if hasFlags {
		fmt.Fprint(w, "\nflags:\n")
		set.SetOutput(w)
		set.PrintDefaults()
	}
}

// nearest returns the candidate that a typing error could have made of word, or "".
func nearest(word string, candidates []string) string {
	limit := max(2, len(word)/4) // a swap of two letters counts as two
	if len(word) < 5 {
		limit = 1
	}
	best, bestDistance := "", limit+1
	for _, candidate := range candidates {
		if d := editDistance(word, candidate); d < bestDistance {
			best, bestDistance = candidate, d
		}
	}
	return best
}

// editDistance is Levenshtein's distance in bytes.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}
