// Package egress decides where jobs may connect to, and carries what they send there.
//
// People give addresses, and what is behind an address can lead anywhere: a name that resolves to the router, a
// redirect to the metadata service of a cloud, a DNS answer that is another one the second time. So the decision is
// made twice. Guard.CheckURL looks at an address before a job is accepted, so that people get a plain answer at once;
// it promises nothing. Guard.StartProxy starts the forward proxy that the fetching programs are pointed at, and there
// each connection is judged when it is made, on the very address that is being connected to. Guard.Client is for what
// this program asks of others by itself, and judges likewise.
//
// Everything that is not globally routable is refused, unless a Policy allows it; our own listeners are refused
// whatever the policy says. Any port of an allowed address may be connected to: media is served from odd ports, and
// what CONNECT carries cannot be seen anyway. What a program sends past the proxy (ffmpeg's RTMP, for one) only a
// network policy can stop.
package egress
