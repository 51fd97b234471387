#!/bin/sh
# Makes sure that what MediaNest runs is on this machine; `make tools` calls it from the root of the checkout.
#
#   Postgres server, ffmpeg with ffprobe, redis-server (tests)   from the system's packages (Debian, Ubuntu)
#   yt-dlp 2025.04.30 or newer                                   in .tools, with .tools/bin/yt-dlp to call
#
# `sh deploy/tools/install.sh yt-dlp` looks after the named ones only (an image has no use for the rest).
#
# Says nothing and ends at once when all is there. The system's package sources are never changed: a newer yt-dlp is
# read from a newer suite of the same mirror through an apt state of its own and unpacked, not installed.
#
# Environment: POSTGRES_BIN, FFMPEG, YTDLP name programs that are elsewhere. YTDLP_RELEASES is where the upstream
# release is fetched from when no suite has it.
set -eu

ytdlp_min=2025.04.30
ytdlp_releases=${YTDLP_RELEASES:-https://github.com/yt-dlp/yt-dlp/releases/latest/download}
tools=$PWD/.tools

say() { printf 'tools: %s\n' "$*"; }
die() {
	printf 'tools: %s\n' "$@" >&2
	exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

[ $# -gt 0 ] || set -- postgres ffmpeg redis-server yt-dlp
wanted=" $* "
wants() { case $wanted in *" $1 "*) ;; *) return 1 ;; esac; }

# --- what is there ---------------------------------------------------------------------------------------------------

have_postgres() {
	for dir in ${POSTGRES_BIN:+"$POSTGRES_BIN"} /usr/lib/postgresql/*/bin /usr/pgsql-*/bin /opt/homebrew/opt/postgresql*/bin /usr/local/opt/postgresql*/bin; do
		[ -x "$dir/initdb" ] && [ -x "$dir/postgres" ] && [ -x "$dir/pg_dump" ] && return 0
	done
	have initdb && have postgres && have pg_dump
}

have_ffmpeg() {
	if [ -n "${FFMPEG:-}" ]; then
		[ -x "$FFMPEG" ] && { have ffprobe || [ -x "${FFMPEG%/*}/ffprobe" ]; }
	else
		have ffmpeg && have ffprobe
	fi
}

# A yt-dlp is tried by running it once, which takes a good half second, and then remembered: the stamp is older than
# the program when somebody has changed the program since.
have_ytdlp() {
	[ -x "$tools/bin/yt-dlp" ] && [ -f "$tools/yt-dlp.ok" ] && [ ! "$tools/bin/yt-dlp" -nt "$tools/yt-dlp.ok" ] || return 1
	while read -r needed; do [ -e "$needed" ] || return 1; done <"$tools/yt-dlp.ok"
}

missing=
! wants postgres || have_postgres || missing="$missing postgres"
! wants ffmpeg || have_ffmpeg || missing="$missing ffmpeg"
! wants redis-server || have redis-server || missing="$missing redis-server"
! wants yt-dlp || have_ytdlp || missing="$missing yt-dlp"
[ -n "$missing" ] || exit 0

mkdir -p "$tools/bin"
scratch=$(mktemp -d "$tools/new.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# --- the system's packages -------------------------------------------------------------------------------------------

# Run by root. The packages' services are not wanted: the platform starts its own servers, on sockets of their own. So
# no cluster is made, nothing is started, and a service that was not there before is off after the next boot, too.
cat >"$scratch/packages.sh" <<'PACKAGES'
set -eu
export DEBIAN_FRONTEND=noninteractive
clusters=/etc/postgresql-common/createcluster.d
policy=/usr/sbin/policy-rc.d
undo=
cleanup() {
	status=$?
	for path in $undo; do rm -f "$path"; done
	exit $status
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
for package in "$@"; do
	case $package in
	postgresql*)
		if [ ! -e "$clusters/medianest-tools.conf" ]; then
			mkdir -p "$clusters"
			undo="$undo $clusters/medianest-tools.conf"
			echo 'create_main_cluster = false' >"$clusters/medianest-tools.conf"
		fi
		;;
	esac
done
if [ ! -e $policy ]; then
	undo="$undo $policy"
	printf '#!/bin/sh\nexit 101\n' >$policy
	chmod 755 $policy
fi
log=$(mktemp)
undo="$undo $log"
install() { apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "$@" >"$log" 2>&1; }
known=true
for package in "$@"; do
	apt-cache show --no-all-versions "$package" >/dev/null 2>&1 || known=false
done
if ! $known || ! install "$@"; then
	echo "tools: reading the package lists (apt-get update)"
	apt-get -o DPkg::Lock::Timeout=300 update >"$log" 2>&1 || { cat "$log" >&2; exit 1; }
	install "$@" || { cat "$log" >&2; exit 1; }
fi
if [ -d /run/systemd/system ]; then
	for package in "$@"; do
		case $package in redis-server) systemctl disable --quiet redis-server.service 2>/dev/null || : ;; esac
	done
fi
PACKAGES

packages=
for item in $missing; do
	case $item in
	postgres) packages="$packages postgresql" ;;
	ffmpeg | redis-server) packages="$packages $item" ;;
	esac
done

# working_python prints the first Python that runs and is new enough for yt-dlp. The system's comes first: one of a
# version manager answers to python3 in some directories only.
working_python() {
	for python in /usr/bin/python3 $(IFS=:; for dir in $PATH; do printf '%s\n' "$dir/python3"; done) /usr/local/bin/python3; do
		[ -x "$python" ] || continue
		(cd / && "$python" -I -c 'import ssl, sys; sys.exit(sys.version_info < (3, 9))') >/dev/null 2>&1 || continue
		printf '%s\n' "$python"
		return 0
	done
	return 1
}
case $missing in *yt-dlp*) working_python >/dev/null || packages="$packages python3" ;; esac

if [ -n "$packages" ]; then
	if ! have apt-get || ! have dpkg; then
		die "missing:$packages" "this is no Debian or Ubuntu: install by hand, with this system's package manager," \
			"  PostgreSQL 15 or newer with its server programs (initdb, postgres) and pg_dump," \
			"  ffmpeg with ffprobe, redis-server (or valkey's, under that name), Python 3.10 or newer," \
			"and set POSTGRES_BIN or FFMPEG where they are not in PATH. Then run \`make tools\` again."
	fi
	say "installing$packages"
	if [ "$(id -u)" = 0 ]; then
		# shellcheck disable=SC2086 # a list of words
		sh "$scratch/packages.sh" $packages || die "apt-get could not install$packages"
	elif have sudo && sudo -n true 2>/dev/null; then
		# shellcheck disable=SC2086
		sudo -n sh "$scratch/packages.sh" $packages || die "apt-get could not install$packages"
	else
		die "this needs root. Run" "  sudo apt-get update && sudo apt-get install --no-install-recommends$packages" "and then \`make tools\` again."
	fi
fi
! wants postgres || have_postgres || die "Postgres is installed, but initdb, postgres and pg_dump are not where they should be: set POSTGRES_BIN"
! wants ffmpeg || have_ffmpeg || die "ffmpeg or ffprobe is not where it should be: set FFMPEG"
! wants redis-server || have redis-server || die "redis-server is not in PATH"

# --- yt-dlp ----------------------------------------------------------------------------------------------------------

! wants yt-dlp || ! have_ytdlp || exit 0
wants yt-dlp || exit 0

# number VERSION prints 2025.04.30, 2025.04.30.123456 and 2025.4.30 as 20250430.
number() { printf '%s\n' "$1" | awk -F. '{ printf "%d", $1 * 10000 + $2 * 100 + $3 }'; }

# version PROGRAM prints its version where that is new enough.
version() {
	found=$("$1" --ignore-config --version 2>/dev/null </dev/null) || return 1
	[ "$(number "$found")" -ge "$(number "$ytdlp_min")" ] || return 1
	printf '%s\n' "$found"
}

# settle VERSION FROM FILE... ends the script: the program works and stands on FILEs.
settle() {
	settled=$1 from=$2
	shift 2
	printf '%s\n' "$@" >"$scratch/ok"
	mv "$scratch/ok" "$tools/yt-dlp.ok"
	say "yt-dlp $settled from $from"
	exit 0
}

# adopt NAME FROM CODE makes .tools/bin/yt-dlp run the Python code at $scratch/NAME, a directory with the package or a
# zip of it, if that code works here. -I keeps the current directory, a user's own packages and PYTHON* out.
adopt() {
	name=$1 from=$2
	python=$(working_python) || return 1
	cat >"$scratch/yt-dlp" <<WRAPPER
#!/bin/sh
here=\$(dirname "\$(readlink -f "\$0")")
exec "$python" -I -c 'import sys; sys.path.insert(0, sys.argv.pop(1)); import yt_dlp; yt_dlp.main()' "\$here/../$name" "\$@"
WRAPPER
	chmod 755 "$scratch/yt-dlp"
	mkdir -p "$scratch/bin"
	cp "$scratch/yt-dlp" "$scratch/bin/yt-dlp"
	found=$(version "$scratch/bin/yt-dlp") || return 1
	[ ! -d "$scratch/$name" ] || "$python" -m compileall -q -j 0 "$scratch/$name/yt_dlp" -x '/extractor/(?!_|common|extractors|generic|lazy|youtube)' >/dev/null 2>&1 || :
	rm -rf "${tools:?}/$name"
	mv "$scratch/$name" "$tools/$name"
	mv "$scratch/bin/yt-dlp" "$tools/bin/yt-dlp"
	settle "$found" "$from" "$python" "$tools/$name"
}

# One that is there already.
for candidate in ${YTDLP:+"$YTDLP"} $(IFS=:; for dir in $PATH; do printf '%s\n' "$dir/yt-dlp"; done); do
	case $candidate in "$tools"/*) continue ;; esac
	[ -x "$candidate" ] || continue
	if found=$(version "$candidate"); then
		rm -f "$tools/bin/yt-dlp"
		ln -s "$candidate" "$tools/bin/yt-dlp"
		settle "$found" "$candidate" "$candidate"
	fi
	say "$candidate is older than $ytdlp_min or does not run"
done

# archives prints "URI component keyring" for the distribution's own archive, read from what apt is set up with.
archives() {
	case $ID in
	debian) component=main keyring=/usr/share/keyrings/debian-archive-keyring.gpg ;;
	ubuntu) component=universe keyring=/usr/share/keyrings/ubuntu-archive-keyring.gpg ;;
	*) return 0 ;;
	esac
	[ -f "$keyring" ] || return 0
	# shellcheck disable=SC2016 # apt's own variables
	apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
		awk -v release="$VERSION_CODENAME" -v component="$component" -v keyring="$keyring" \
			'$1 == release && $2 == component && !seen[$3]++ { print $3, component, keyring }'
}

# suites prints where a new enough yt-dlp may be, the smallest index with a new one first: a backports suite is read
# in a second, the unstable one is ten megabytes. The release's own backports come last: older, but made for its Python.
suites() {
	case $ID in
	debian) printf '%s\n' trixie-backports sid "$VERSION_CODENAME-backports" | awk '!seen[$0]++' ;;
	ubuntu) printf '%s\n' "$VERSION_CODENAME-backports" devel ;;
	esac
}

# from_suite URI COMPONENT KEYRING SUITE
from_suite() {
	apt=$scratch/apt-$4
	mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$apt/unpacked"
	cat >"$apt/own.sources" <<SOURCES
Types: deb
URIs: $1
Suites: $4
Components: $2
Signed-By: $3
SOURCES
	# Read after the system's settings, of which it keeps proxies and the like; hooks and pins are not for this.
	cat >"$apt/own.conf" <<CONF
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear Acquire::IndexTargets::deb::DEP-11;
#clear Acquire::IndexTargets::deb::DEP-11-icons;
Dir::Etc::sourcelist "$apt/own.sources";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::State "$apt";
Dir::State::lists "$apt/lists";
Dir::State::status "/dev/null";
Dir::Cache "$apt/cache";
Acquire::Languages "none";
Acquire::Retries "2";
APT::Sandbox::User "$(id -un)";
CONF
	apt-get -c "$apt/own.conf" update >"$apt/log" 2>&1 || return 1
	offered=$(apt-cache -c "$apt/own.conf" show --no-all-versions yt-dlp 2>/dev/null | sed -n 's/^Version: *\([0-9.]*\).*/\1/p')
	[ -n "$offered" ] && [ "$(number "$offered")" -ge "$(number "$ytdlp_min")" ] || return 1
	(cd "$apt" && apt-get -c "$apt/own.conf" download yt-dlp) >>"$apt/log" 2>&1 || return 1
	dpkg -x "$apt"/yt-dlp_*.deb "$apt/unpacked" || return 1
	[ -d "$apt/unpacked/usr/lib/python3/dist-packages/yt_dlp" ] || return 1
	mv "$apt/unpacked/usr/lib/python3/dist-packages" "$scratch/yt-dlp-$offered"
	adopt "yt-dlp-$offered" "the suite $4"
}

fetch() {
	if have curl; then
		curl -fsSL --connect-timeout 10 --retry 2 -o "$2" "$1"
	elif have wget; then
		wget -q --timeout=30 --tries=2 -O "$2" "$1"
	else
		die "neither curl nor wget is here to fetch yt-dlp with"
	fi
}

sha256() {
	if have sha256sum; then sha256sum "$1"; else shasum -a 256 "$1"; fi | cut -d ' ' -f 1
}

# from_upstream takes the project's own release, if it is what the project's list of sums says.
from_upstream() {
	fetch "$ytdlp_releases/SHA2-256SUMS" "$scratch/sums" && fetch "$ytdlp_releases/yt-dlp" "$scratch/yt-dlp.zip" || return 1
	want=$(awk '$2 == "yt-dlp" || $2 == "*yt-dlp" { print $1 }' "$scratch/sums")
	[ -n "$want" ] && [ "$(sha256 "$scratch/yt-dlp.zip")" = "$want" ] || die "the yt-dlp at $ytdlp_releases is not what its SHA2-256SUMS says: not used"
	adopt yt-dlp.zip "$ytdlp_releases"
}

say "fetching yt-dlp into .tools"
if have apt-get && have dpkg && [ -r /etc/os-release ]; then
	ID= VERSION_CODENAME=
	. /etc/os-release
	archives >"$scratch/archives"
	while read -r uri component keyring; do
		for suite in $(suites); do
			from_suite "$uri" "$component" "$keyring" "$suite" || say "no yt-dlp that runs here in the suite $suite"
		done
	done <"$scratch/archives"
fi
from_upstream || die "no yt-dlp $ytdlp_min or newer could be fetched." \
	"Install it by hand (https://github.com/yt-dlp/yt-dlp/wiki/Installation), so that it is in PATH or named by YTDLP, and run \`make tools\` again."
