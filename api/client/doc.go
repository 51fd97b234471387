// Package client is the Go client of the platform's API. Its requests and types are generated from the OpenAPI document
// (client.gen.go); written by hand are the ways to make a client, its errors (problem.go), and the reader of the event
// stream (events.go), which reconnects by itself and misses nothing.
//
// The document beside this file is what the API says of itself; a test of package api keeps it so.
package client

//go:generate go test medianest/api -count=1 -run ^TestDocumentIsCommitted$ -update
//go:generate go run github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen@v2.8.2 -config oapi-codegen.yaml openapi.json
//go:generate go test medianest/api/client -count=1 -run ^TestGeneratedFromDocument$ -update
