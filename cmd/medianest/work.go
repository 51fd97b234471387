package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"medianest/jobs"
	"medianest/jobs/egress"
	"medianest/jobs/media"
	"medianest/jobs/siem"
	"medianest/jobs/ytdlp"
)

// The steps of a process that works jobs.

// findTools refuses to start without the programs that every job needs.
func (a *assembly) findTools(context.Context) error {
	a.tools = findTools(a.config)
	for _, t := range []struct{ path, name, variable, install string }{
		{a.tools.ytdlp, "yt-dlp", "MEDIANEST_YTDLP", "`make tools` in the checkout, or https://github.com/yt-dlp/yt-dlp (" + ytdlp.MinVersion + " or newer)"},
		{a.tools.ffmpeg, "ffmpeg", "MEDIANEST_FFMPEG", "apt-get install ffmpeg"},
		{a.tools.ffprobe, "ffprobe", "MEDIANEST_FFMPEG", "it comes with ffmpeg: apt-get install ffmpeg"},
	} {
		if t.path == "" {
			return usageError("%s was not found: install it (%s), or name it by %s", t.name, t.install, t.variable)
		}
	}
	return nil
}

// openLibrary makes the media directory where it is missing, and refuses one that files cannot be published in.
func (a *assembly) openLibrary(context.Context) (err error) {
	a.library, err = media.Open(media.Options{
		Root: a.config.MediaDir, FFprobe: a.tools.ffprobe, Logger: a.log,
		Claimed: func(ctx context.Context, path string) (bool, error) { return a.workerStore.FileRecorded(ctx, path) },
	})
	if err != nil {
		return usageError("MEDIANEST_MEDIA_DIR: %v", err)
	}
	a.life.start(unit{name: "library", stop: func(context.Context) error { return a.library.Close() }})
	return nil
}

// prepareWork makes the way out to the network and yt-dlp, and registers the workers over them and the library.
func (a *assembly) prepareWork(ctx context.Context) error {
	runner, err := ytdlp.New(ytdlp.Options{
		Path: a.tools.ytdlp, FFmpeg: a.tools.ffmpeg, SearchPath: environment(a.process.env)["PATH"], Logger: a.log,
		Guard: a.keeper,
	})
	if err != nil {
		return err
	}
	allowed, err := egress.ParseAllow(a.config.EgressAllow)
	if err != nil {
		return usageError("MEDIANEST_EGRESS_ALLOW: %v", err)
	}
	guard := egress.NewGuard(egress.Options{Policy: allowed, Forbidden: a.ownAddresses(ctx), Logger: a.log})
	proxy, err := guard.StartProxy(ctx)
	if err != nil {
		return err
	}
	a.life.start(unit{name: "egress proxy", stop: func(context.Context) error { proxy.Close(); return nil }})
	if allowed := a.config.EgressAllow; allowed != "" {
		a.log.InfoContext(ctx, "downloads may reach private addresses", slog.String("allowed", allowed))
	}
	a.life.start(unit{name: "staging sweep", run: func(ctx context.Context) error { a.sweep(ctx); return nil }})
	a.checkTools(runner)
	a.health.add(check{
		name: "media", detail: "the media directory cannot be written to",
		probe: func(context.Context) error { return writable(filepath.Join(a.config.MediaDir, ".medianest")) },
	})
	var collector jobs.Collector
	if a.config.AuditForward != "" {
		if collector, err = siem.Parse(a.config.AuditForward); err != nil {
			return usageError("MEDIANEST_AUDIT_FORWARD: %v", err)
		}
	}
	return jobs.Register(a.workers, jobs.Deps{
		Collector: collector,
		Store:     a.workerStore, Extractor: newTracedExtractor(runner, a.telemetry.tracers), Library: a.library, Guard: guard, Proxy: proxy,
		Progress: a.progress, Logger: a.log, StagingWait: a.config.StagingWait, EventRetention: a.config.Retention,
		RetryScale: a.config.RetryScale,
	})
}

// sweep removes from the staging area, at the start, what a killed predecessor may have left and no job will need. Later
// a schedule does.
func (a *assembly) sweep(ctx context.Context) {
	if err := jobs.SweepStaging(ctx, a.workerStore, a.library); err != nil {
		a.log.WarnContext(ctx, "staging area not swept", slog.Any("err", err))
	}
	<-ctx.Done()
}

// checkTools has yt-dlp and ffmpeg say their versions in the background, since that takes a second, and reports what
// does not run or is too old.
func (a *assembly) checkTools(runner *ytdlp.Runner) {
	for _, tool := range []struct {
		name string
		ask  func(context.Context) (string, error)
	}{
		{"yt-dlp", runner.Version},
		{"ffmpeg", func(ctx context.Context) (string, error) { return askTool(ctx, a.tools.ffmpeg, "-version") }},
	} {
		var asked toolState
		a.life.start(unit{name: tool.name + " check", run: func(ctx context.Context) error {
			asked.ask(ctx, tool.name, tool.ask, a.log)
			<-ctx.Done()
			return nil
		}})
		a.health.add(check{name: tool.name, detail: tool.name + " does not run, or is too old", probe: asked.get})
	}
}

// ownAddresses are where no job may connect, whatever is allowed: our listeners, and the services that trust us.
func (a *assembly) ownAddresses(ctx context.Context) []netip.AddrPort {
	var own []netip.AddrPort
	for _, l := range []net.Listener{a.apiListener, a.adminListener} {
		if l == nil {
			continue
		}
		if address, err := netip.ParseAddrPort(l.Addr().String()); err == nil {
			own = append(own, address)
		}
	}
	if !a.serves() {
		// An API replica on this machine listens where this setting says, here or by default.
		for _, address := range []string{a.config.Listen, a.config.AdminListen} {
			if strings.HasPrefix(address, ":") {
				address = netip.IPv4Unspecified().String() + address // every address of this machine
			}
			if found, err := netip.ParseAddrPort(address); err == nil && found.Port() != 0 {
				own = append(own, found)
			}
		}
	}
	for _, hostPort := range a.services() {
		own = append(own, resolve(ctx, hostPort)...)
	}
	return own
}

// services are the host:port pairs in the settings.
func (a *assembly) services() []string {
	var services []string
	if c, err := pgconn.ParseConfig(a.config.DatabaseURL.reveal()); err == nil && a.config.DatabaseURL != "" {
		services = append(services, net.JoinHostPort(c.Host, fmt.Sprint(c.Port)))
		for _, f := range c.Fallbacks {
			services = append(services, net.JoinHostPort(f.Host, fmt.Sprint(f.Port)))
		}
	}
	for _, s := range []struct{ url, port string }{
		{a.config.RedisURL.reveal(), "6379"}, {a.config.OTLPEndpoint, "4318"}, {a.config.PublicURL, ""},
	} {
		services = append(services, hostsOf(s.url, s.port)...)
	}
	return services
}

// hostsOf are the host:port pairs of a URL that may name several hosts, as those of Redis' Sentinels and Clusters do:
// separated by commas, or as addr in the query. A host without a port has the one given, or the scheme's.
func hostsOf(rawURL, port string) []string {
	scheme, rest, ok := strings.Cut(rawURL, "://")
	if !ok {
		return nil
	}
	if port == "" {
		port = scheme
	}
	rest, query, _ := strings.Cut(rest, "?")
	authority, _, _ := strings.Cut(rest, "/")
	authority = authority[strings.LastIndexByte(authority, '@')+1:]
	hosts := strings.Split(authority, ",")
	if values, err := url.ParseQuery(query); err == nil {
		hosts = append(hosts, values["addr"]...)
	}
	var found []string
	for _, host := range hosts {
		if host == "" {
			continue
		}
		if _, _, err := net.SplitHostPort(host); err != nil {
			host = net.JoinHostPort(strings.Trim(host, "[]"), port)
		}
		found = append(found, host)
	}
	return found
}

// resolveTimeout bounds the look-up of one service: what cannot be found now is private in most networks, and refused
// for that.
const resolveTimeout = 2 * time.Second

func resolve(ctx context.Context, hostPort string) []netip.AddrPort {
	host, portText, err := net.SplitHostPort(hostPort)
	if err != nil {
		return nil
	}
	port, err := net.LookupPort("tcp", portText)
	if err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	addresses, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil // a socket's path, or a name that is not known yet
	}
	found := make([]netip.AddrPort, 0, len(addresses))
	for _, address := range addresses {
		found = append(found, netip.AddrPortFrom(address.Unmap(), uint16(port)))
	}
	return found
}

// writable tries to make a file where downloads are kept while they are fetched.
func writable(dir string) error {
	probe, err := os.CreateTemp(dir, ".write-probe-*")
	if err != nil {
		return err
	}
	return errors.Join(probe.Close(), os.Remove(probe.Name()))
}
