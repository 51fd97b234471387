package media_test

import (
	"fmt"

	"medianest/jobs/media"
)

func ExampleContentKey() {
	for _, rawURL := range []string{
		"https://youtu.be/dQw4w9WgXcQ?si=shared",
		"HTTPS://Site.Example:443/films/../a%2fb?id=7&utm_source=mail#comments",
	} {
		key, canonicalURL, err := media.ContentKey("best", rawURL)
		fmt.Println(key, canonicalURL, err)
	}
	// Output:
	// best youtube:dQw4w9WgXcQ https://www.youtube.com/watch?v=dQw4w9WgXcQ <nil>
	// best https://site.example/a%2Fb?id=7 https://site.example/a%2Fb?id=7 <nil>
}

func ExampleFileName() {
	fmt.Println(media.FileName("Half Life: 1/2?", "dQw4w9WgXcQ", "mp4"))
	// Output: Half Life- 1-2 [dQw4w9WgXcQ].mp4
}
