package pgserver

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

const (
	settingsFile = "medianest.conf"

	// postgresqlConf replaces the sample that initdb writes, once: below the include there is room for the operator.
	postgresqlConf = `# medianest.conf is written anew at every start. Settings below its include win over it, except those that the
# server gets on its command line: where it listens, what it logs.
include '` + settingsFile + `'
`
)

// fixedSettings are what nobody may change: where the server listens, and that its log holds no statement and no
// value, which may be secrets.
func (s *Server) fixedSettings() []string {
	settings := [][2]string{
		{"listen_addresses", ""},
		{"port", strconv.Itoa(port)},
		{"unix_socket_directories", quoteDir(s.socketDir)},
		{"unix_socket_permissions", "0700"},
		{"log_destination", "stderr"},
		{"logging_collector", "off"},
		{"log_line_prefix", logPrefix},
		{"lc_messages", "C"},
		{"log_error_verbosity", "terse"},
		{"log_min_error_statement", "panic"},
		{"log_statement", "none"},
		{"log_parameter_max_length", "0"},
		{"log_parameter_max_length_on_error", "0"},
		{"log_min_duration_statement", "-1"},
	}
	args := make([]string, 0, 2*len(settings))
	for _, kv := range settings {
		args = append(args, "-c", kv[0]+"="+kv[1])
	}
	return args
}

// tunables suit a small box that does other things as well: 25 MB idle, by proportional set size of all processes, and
// growing by shared_buffers and a few MB for each busy connection.
func (s *Server) tunables() [][2]string {
	settings := [][2]string{
		{"max_connections", "100"},
		{"superuser_reserved_connections", "3"},
		{"shared_buffers", "64MB"},
		{"effective_cache_size", "256MB"},
		{"work_mem", "4MB"},
		{"maintenance_work_mem", "32MB"},
		{"temp_buffers", "2MB"},
		{"max_worker_processes", "4"},
		{"max_parallel_workers_per_gather", "0"},
		{"max_parallel_maintenance_workers", "0"},
		{"autovacuum_max_workers", "2"},
		{"autovacuum_naptime", "15s"},
		{"jit", "off"}, // its compile time exceeds any query here
		{"wal_level", "replica"},
		{"max_wal_senders", "2"}, // pg_basebackup takes two
		{"max_replication_slots", "2"},
		{"max_logical_replication_workers", "0"},
		{"wal_compression", "on"},
		{"min_wal_size", "32MB"},
		{"max_wal_size", "512MB"},
		{"checkpoint_timeout", "10min"},
		{"random_page_cost", "1.5"},
		{"track_io_timing", "on"},
		{"log_checkpoints", "off"},
		{"log_timezone", "UTC"},
		{"timezone", "UTC"},
		{"datestyle", "ISO"},
		{"idle_session_timeout", "0"},
		// mmap keeps segments in the data directory: nothing in /dev/shm, small or missing in containers, can be
		// left behind or run out.
		{"dynamic_shared_memory_type", "mmap"},
		{"min_dynamic_shared_memory", "0"},
	}
	if s.opts.NoSync {
		settings = append(settings, [][2]string{
			{"fsync", "off"},
			{"full_page_writes", "off"},
			{"max_wal_size", "64MB"},
			{"min_wal_size", "16MB"},
			{"shared_buffers", "32MB"},
			{"autovacuum_naptime", "1min"},
		}...)
	}
	return settings
}

// writeSettings writes the settings file, and once the file that includes it.
func (s *Server) writeSettings() error {
	var b strings.Builder
	b.WriteString("# Written at every start; see postgresql.conf for where to put settings of your own.\n")
	for _, kv := range s.tunables() {
		fmt.Fprintf(&b, "%s = '%s'\n", kv[0], kv[1])
	}
	if err := s.writeFile(settingsFile, b.String()); err != nil {
		return err
	}
	main := filepath.Join(s.dataDir, "postgresql.conf")
	old, err := os.ReadFile(main)
	if err != nil {
		return fmt.Errorf("read settings: %w", err)
	}
	if strings.Contains(string(old), settingsFile) {
		return nil
	}
	return s.writeFile("postgresql.conf", postgresqlConf)
}

// writeFile replaces a file of the data directory, whole or not at all.
func (s *Server) writeFile(name, content string) error {
	path := filepath.Join(s.dataDir, name)
	if err := os.WriteFile(path+".new", []byte(content), 0o600); err != nil {
		return fmt.Errorf("write settings: %w", err)
	}
	if err := s.ident.own(path + ".new"); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("write settings: %w", err)
	}
	return nil
}

// quoteDir quotes a directory in a list of them.
func quoteDir(dir string) string {
	return `"` + strings.ReplaceAll(dir, `"`, `""`) + `"`
}
