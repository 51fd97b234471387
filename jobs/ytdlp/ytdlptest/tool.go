package ytdlptest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Tool finds a program that tests and the demo need: the one named by the environment (YTDLP, FFMPEG; for ffprobe the
// one beside FFMPEG), else the one that `make tools` put into the checkout, else the one in PATH.
func Tool(name string) (string, error) {
	if named := os.Getenv(strings.ToUpper(strings.ReplaceAll(name, "-", ""))); named != "" {
		return executable(named)
	}
	if named := os.Getenv("FFMPEG"); named != "" && name == "ffprobe" {
		if path, err := executable(filepath.Join(filepath.Dir(named), name)); err == nil {
			return path, nil
		}
	}
	if root, err := checkout(); err == nil {
		if path, err := executable(filepath.Join(root, ".tools", "bin", name)); err == nil {
			return path, nil
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("find %s: %w (run `make tools`)", name, err)
	}
	return filepath.Abs(path)
}

func executable(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if info.IsDir() || info.Mode()&0o111 == 0 {
		return "", fmt.Errorf("%s is not a program", path)
	}
	return path, nil
}

// checkout is the directory of the module that the current directory is in. A test runs in its package's directory.
func checkout() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("not in a checkout")
		}
		dir = parent
	}
}

// CacheDir is where sample media are kept between runs: in the checkout, or else with the system's temporary files.
func CacheDir() string {
	if root, err := checkout(); err == nil {
		return filepath.Join(root, ".tools", "samples")
	}
	return filepath.Join(os.TempDir(), "medianest-samples")
}
