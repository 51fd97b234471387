// Package media keeps the library: the folder of films that people and media servers see.
//
// A file in the library is whole. Fetches write below the library's own hidden folder, on the same file system; what
// they leave is verified there, and comes under its name in one step that never replaces anything. Every user has a
// folder, and users who wish for the same film have links to the same bytes.
//
// The package also names things: the file of a film (FileName) and a film by its address (ContentKey).
package media
