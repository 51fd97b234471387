package ytdlp

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	goytdlp "github.com/lrstanley/go-ytdlp"

	"medianest/jobs/media"
)

// Profile says what is wanted of a film that is offered in several qualities. It is part of what a download is, so
// its zero value has a meaning that stays: at most 1080 lines, in MP4 where that is possible without conversion.
type Profile struct {
	// MaxHeight is the most lines wanted; what has more is taken only where there is nothing with fewer. 0 means 1080.
	MaxHeight int
	// Container is mp4, mkv or webm for films (default mp4); m4a, mp3 or opus for sound alone (default: as offered).
	Container string
	// AudioOnly leaves the picture out.
	AudioOnly bool
}

var (
	filmContainers  = []string{"mp4", "mkv", "webm"}
	soundContainers = []string{"m4a", "mp3", "opus"}
)

// Validate reports whether the profile can be asked for.
func (p Profile) Validate() error {
	containers := filmContainers
	if p.AudioOnly {
		containers = soundContainers
	}
	if p.Container != "" && !slices.Contains(containers, p.Container) {
		return fmt.Errorf("container %q is none of %s", p.Container, strings.Join(containers, ", "))
	}
	if p.MaxHeight < 0 || p.MaxHeight > 1<<16 {
		return fmt.Errorf("maximum height %d is out of range", p.MaxHeight)
	}
	return nil
}

// Files that are in the directory of a Fetch besides the media.
const (
	infoFile    = "info.json"
	planFile    = "plan.json" // what yt-dlp has chosen
	sourceFile  = "source"    // the fragments of it, as yt-dlp writes them before it begins
	journalFile = "journal"   // how far it has come
	bootFile    = "boot"      // which boot of which machine has written here last
)

// mediaTemplate names what is fetched. The format is part of the name, so that what is left of one format is never
// continued with the bytes of another; everything else is fixed, so that no title or id of a site becomes a path.
const mediaTemplate = "media.%(format_id).60B.%(ext)s"

// noOtherTransports leaves out formats for which yt-dlp would start a program that knows no HTTP proxy.
const noOtherTransports = "[protocol!^=rtmp][protocol!^=rtsp][protocol!^=mms]"

// ffmpegTransports is what ffmpeg may speak where it fetches itself: encrypted and live HLS, mostly. It obeys
// http_proxy for these, and for these only.
const ffmpegTransports = "http,https,httpproxy,tcp,tls,crypto,data"

// ffmpegStreams are options for each address that ffmpeg fetches from: HLS, the subtitles that can be in it, and media.
var ffmpegStreams = "-protocol_whitelist " + ffmpegTransports + " -format_whitelist hls,webvtt," + media.Demuxers

// ffmpegInputs are options for each file that ffmpeg reads when it merges, repairs or repacks what was downloaded. The
// site decides what is in those files: one that turns out to be a playlist may name any file of this machine, another
// user's films included, and ffmpeg would copy it.
var ffmpegInputs = "-protocol_whitelist file -format_whitelist " + media.Demuxers

// ffmpegSteps are yt-dlp's post-processors that may have ffmpeg read what was downloaded. yt-dlp knows input options
// per post-processor only; these are all that there are, but for those of subtitles and thumbnails, which are not asked
// for, and that of concatenation, which is turned off. The ffprobe that they run first cannot be given options; what it
// finds, they use for nothing but their choice of options.
var ffmpegSteps = []string{
	"CopyStream", "ExtractAudio", "FixupDuplicateMoov", "FixupDuration", "FixupM3u8", "FixupM4a", "FixupStretched",
	"FixupTimestamp", "Merger", "Metadata", "SplitChapters", "VideoConvertor", "VideoRemuxer",
}

// common are the options of every run that touches the network. This function and those below are pure.
func common(o Options) *goytdlp.Command {
	retries := strconv.Itoa(o.Retries)
	command := goytdlp.New().
		IgnoreConfig().
		NoConfigLocations().
		NoPluginDirs().
		NoCacheDir().
		NoUpdate().
		NoColors().
		Quiet().
		SocketTimeout(o.SocketTimeout.Seconds()).
		Retries(retries).
		FragmentRetries(retries).
		RetrySleep("http:exp=1:8").
		RetrySleep("fragment:exp=1:8").
		NoPlaylist()
	if o.FFmpeg != "" {
		command.FFmpegLocation(o.FFmpeg)
	}
	return command
}

// probeArgs describe what is behind an address, without following the entries of a collection, except where one
// entry is asked for.
func probeArgs(o Options, at target) []string {
	command := common(o).DumpSingleJSON()
	if at.item > 0 {
		command.PlaylistItems(strconv.Itoa(at.item))
	} else {
		command.FlatPlaylist().PlaylistItems(":" + strconv.Itoa(MaxEntries+1))
	}
	return append(flags(command), "--", at.url)
}

// fetchArgs bring one film, from its description in the directory's info file if fromInfo, else from its address.
// chosen are the formats that an earlier run has chosen, nil if there was none.
func fetchArgs(o Options, p Profile, at target, dir string, fromInfo bool, chosen *plan) []string {
	command := common(o).
		NoSimulate().
		Progress().
		Newline().
		ProgressDelta(1).
		ProgressTemplate("download:"+downloadTemplate).
		ProgressTemplate("postprocess:"+postprocessTemplate).
		Print("before_dl:"+planTemplate).
		PrintToFile("before_dl:"+sourceTemplate, sourceFile). // see sources
		Print("after_move:" + fileTemplate).
		Output(mediaTemplate).
		Paths(dir).
		Part().
		Continue().
		NoMtime().
		AbortOnUnavailableFragments().
		ConcurrentFragments(1). // see journal
		WritePages().           // see sources
		// By itself, yt-dlp does not mend what it finds fetched: a stream that was killed before it was mended.
		Fixup(goytdlp.FixupForce).
		NoResizeBuffer().
		BufferSize("64K").
		Downloader("m3u8:native").
		Downloader("dash:native").
		DownloaderArgs("ffmpeg_i:" + ffmpegStreams).
		ConcatPlaylist(goytdlp.ConcatPlaylistNever).
		PlaylistItems(strconv.Itoa(max(at.item, 1)))
	for _, step := range ffmpegSteps {
		command.PostProcessorArgs(step + "+ffmpeg_i:" + ffmpegInputs)
	}
	p.apply(command, chosen)
	if fromInfo {
		return flags(command.LoadInfoJSON(filepath.Join(dir, infoFile)))
	}
	return append(flags(command), "--", at.url)
}

// apply asks for what the profile wants. Quality comes first, the container breaks ties: `ext` prefers streams that
// fit it, and what does not fit goes into Matroska, which takes everything, rather than through a conversion. What was
// chosen before stays.
func (p Profile) apply(command *goytdlp.Command, chosen *plan) {
	format := "bv*" + noOtherTransports + "+ba" + noOtherTransports + "/b" + noOtherTransports
	if p.AudioOnly {
		format = "ba" + noOtherTransports + "/b" + noOtherTransports
	}
	if chosen != nil {
		format = chosen.selector()
	}
	command.Format(format)
	if p.AudioOnly {
		command.ExtractAudio()
		if p.Container != "" {
			command.AudioFormat(p.Container)
		}
		return
	}
	height, container := p.MaxHeight, p.Container
	if height == 0 {
		height = 1080
	}
	if container == "" {
		container = "mp4"
	}
	sort := "res:" + strconv.Itoa(height)
	switch container {
	case "mp4":
		command.FormatSort(sort + ",ext:mp4:m4a").MergeOutputFormat("mp4/mkv").RemuxVideo("mov>mp4/m4v>mp4/ts>mp4/flv>mp4")
	case "webm":
		command.FormatSort(sort + ",ext:webm:webm").MergeOutputFormat("webm/mkv")
	default:
		command.FormatSort(sort).MergeOutputFormat("mkv").RemuxVideo("mkv")
	}
}

// flags are the command's options as arguments.
func flags(command *goytdlp.Command) []string {
	var args []string
	for _, flag := range command.GetFlagConfig().ToFlags() {
		args = append(args, flag.Raw()...)
	}
	return args
}

// environment is all that yt-dlp, and ffmpeg under it, gets to see. What they keep of their own goes to dir. no_proxy
// is not in it, whatever our own environment has, so that nothing goes past the proxy.
func environment(o Options, dir string, network Network) []string {
	env := []string{
		"PATH=" + o.SearchPath,
		"LC_ALL=C.UTF-8",
		"HOME=" + dir,
		"TMPDIR=" + dir,
		"XDG_CACHE_HOME=" + filepath.Join(dir, ".cache"),
		"XDG_CONFIG_HOME=" + filepath.Join(dir, ".config"),
		"XDG_DATA_HOME=" + filepath.Join(dir, ".local"),
	}
	if network.ProxyURL != "" {
		for _, name := range []string{"http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"} {
			env = append(env, name+"="+network.ProxyURL)
		}
	}
	return env
}
