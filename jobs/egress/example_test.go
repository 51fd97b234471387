package egress

import (
	"context"
	"fmt"
	"net/http"
	"net/url"

	"medianest/jobs/reason"
)

// ExampleGuard shows what a worker does: check, open a session, run a program through it, ask what was refused.
func ExampleGuard() {
	ctx := context.Background()
	policy, err := ParseAllow("nas.lan,10.20.0.0/16:8096")
	if err != nil {
		fmt.Println(err)
		return
	}
	guard := NewGuard(Options{Policy: policy})
	fmt.Println(guard.CheckURL(ctx, "http://10.20.0.7:8096/video.mp4"))

	proxy, err := guard.StartProxy(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer proxy.Close()
	session := proxy.Session()
	defer session.Close()
	through, err := url.Parse(session.URL())
	if err != nil {
		fmt.Println(err)
		return
	}
	client := &http.Client{Transport: &http.Transport{Proxy: http.ProxyURL(through), DisableKeepAlives: true}}
	response, err := client.Get("http://169.254.169.254/latest/meta-data/")
	if err != nil {
		fmt.Println(err)
		return
	}
	_ = response.Body.Close()
	fmt.Println(response.StatusCode)
	fmt.Println(reason.Find(session.Denied()).Detail)
	// Output:
	// <nil>
	// 403
	// The host 169.254.169.254 may not be connected to: it is a link-local address. An administrator can allow it.
}
