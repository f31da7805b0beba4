package paywarden

import (
	"bytes"
	"errors"
	"strconv"
	"strings"
)

const (
	// To read the largest answer takes no more than a few milliseconds, since a host may send it just before the deadline.
	// Our own answers have some 2 KB.
	headBytesMax = 16 * 1024
	bodyBytesMax = 64 * 1024
	chunksMax    = 1000
	// A chunk's size in hexadecimal digits, and its extensions.
	chunkLineMax = 1024
	unknown      = -1
)

// errNoAnswer says that what came is no answer in HTTP/1.1, or too large.
var errNoAnswer = errors.New("not an answer in HTTP/1.1, or too large")

// requestBytes returns a POST as bytes. The caller has checked that no header holds a control character.
func requestBytes(path, authority string, headers []header, body []byte) []byte {
	request := make([]byte, 0, 400+len(body))
	request = append(request, "POST "...)
	request = append(request, path...)
	request = append(request, " HTTP/1.1\r\nhost: "...)
	request = append(request, authority...)
	for _, one := range headers {
		request = append(request, "\r\n"...)
		request = append(request, one.name...)
		request = append(request, ": "...)
		request = append(request, one.value...)
	}
	request = append(request, "\r\ncontent-length: "...)
	request = strconv.AppendInt(request, int64(len(body)), 10)
	request = append(request, "\r\n\r\n"...)
	return append(request, body...)
}

// answerReader reads one answer.
type answerReader struct {
	data       []byte
	isHeadRead bool
	isChunked  bool
	length     int
	// passed counts the bytes of heads that were read, those of interim answers among them.
	passed, chunkCount int
	status             int
	body               []byte
	// keeps says whether the connection may be used again, saysClose whether the host said that it will not be.
	keeps, saysClose bool
}

// feed takes what was received. It returns whether the answer is whole.
func (r *answerReader) feed(received []byte) (bool, error) {
	r.data = append(r.data, received...)
	for !r.isHeadRead {
		end := bytes.Index(r.data, []byte("\r\n\r\n"))
		size := end
		if end < 0 {
			size = len(r.data)
		}
		if r.passed+size > headBytesMax {
			return false, errNoAnswer
		}
		if end < 0 {
			return false, nil
		}
		r.passed += size + 4
		head := r.data[:end]
		r.data = r.data[end+4:]
		if err := r.readHead(string(head)); err != nil {
			return false, err
		}
	}
	if r.isChunked {
		return r.readChunks()
	}
	if r.length != unknown {
		if len(r.data) < r.length {
			return false, nil
		}
		r.body = r.data[:r.length]
		// Bytes beyond it are some that nobody asked for.
		r.keeps = r.keeps && len(r.data) == r.length
		return true, nil
	}
	if len(r.data) > bodyBytesMax {
		return false, errNoAnswer
	}
	return false, nil
}

// end notes that the connection has ended. It returns whether that made the answer whole.
func (r *answerReader) end() bool {
	if !r.isHeadRead || r.isChunked || r.length != unknown {
		return false
	}
	r.body, r.keeps = r.data, false
	return true
}

func (r *answerReader) readHead(head string) error {
	first, rest, _ := strings.Cut(head, "\r\n")
	if len(first) < 12 || first[:7] != "HTTP/1." || (first[7:9] != "0 " && first[7:9] != "1 ") || !isDigits(first[9:12]) {
		return errNoAnswer
	}
	if len(first) > 12 && first[12] != ' ' {
		return errNoAnswer
	}
	r.status, _ = strconv.Atoi(first[9:12])
	if 100 <= r.status && r.status < 200 {
		if r.status == 101 {
			return errNoAnswer
		}
		return nil
	}
	r.isHeadRead, r.length = true, unknown
	isKept := false
	for rest != "" {
		var line string
		line, rest, _ = strings.Cut(rest, "\r\n")
		name, value, hasColon := strings.Cut(line, ":")
		if !hasColon || name == "" || name != strings.Trim(name, " \t") {
			return errNoAnswer
		}
		value = strings.Trim(value, " \t")
		switch {
		case strings.EqualFold(name, "content-length"):
			if err := r.setLength(value); err != nil {
				return err
			}
		case strings.EqualFold(name, "transfer-encoding"):
			if r.isChunked || !strings.EqualFold(value, "chunked") {
				return errNoAnswer
			}
			r.isChunked = true
		case strings.EqualFold(name, "connection"):
			for _, option := range strings.Split(value, ",") {
				option = strings.Trim(option, " \t")
				r.saysClose = r.saysClose || strings.EqualFold(option, "close")
				isKept = isKept || strings.EqualFold(option, "keep-alive")
			}
		}
	}
	if r.isChunked && r.length != unknown {
		return errNoAnswer
	}
	if r.status == 204 || r.status == 304 {
		r.length, r.isChunked = 0, false
	}
	r.keeps = !r.saysClose && (first[7] == '1' || isKept)
	return nil
}

func (r *answerReader) setLength(value string) error {
	// More digits than these are more than is taken.
	if !isDigits(value) || len(value) > 9 {
		return errNoAnswer
	}
	length, _ := strconv.Atoi(value)
	if length > bodyBytesMax || (r.length != unknown && r.length != length) {
		return errNoAnswer
	}
	r.length = length
	return nil
}

func (r *answerReader) readChunks() (bool, error) {
	for {
		lineEnd := bytes.Index(r.data, []byte("\r\n"))
		if lineEnd < 0 {
			if len(r.data) > chunkLineMax {
				return false, errNoAnswer
			}
			return false, nil
		}
		if lineEnd > chunkLineMax {
			return false, errNoAnswer
		}
		digits, _, _ := strings.Cut(string(r.data[:lineEnd]), ";")
		digits = strings.Trim(digits, " \t")
		size, err := strconv.ParseUint(digits, 16, 32)
		if err != nil || len(digits) > 8 || len(r.body)+int(size) > bodyBytesMax {
			return false, errNoAnswer
		}
		if size == 0 {
			return r.readTrailers(r.data[lineEnd+2:])
		}
		end := lineEnd + 2 + int(size)
		if len(r.data) < end+2 {
			return false, nil
		}
		if r.data[end] != '\r' || r.data[end+1] != '\n' {
			return false, errNoAnswer
		}
		if r.chunkCount++; r.chunkCount > chunksMax {
			return false, errNoAnswer
		}
		r.body = append(r.body, r.data[lineEnd+2:end]...)
		r.data = r.data[end+2:]
	}
}

func (r *answerReader) readTrailers(rest []byte) (bool, error) {
	if bytes.HasPrefix(rest, []byte("\r\n")) {
		r.keeps = r.keeps && len(rest) == 2
		return true, nil
	}
	if len(rest) > headBytesMax {
		return false, errNoAnswer
	}
	end := bytes.Index(rest, []byte("\r\n\r\n"))
	if end < 0 {
		return false, nil
	}
	r.keeps = r.keeps && end+4 == len(rest)
	return true, nil
}

func isDigits(text string) bool {
	for place := 0; place < len(text); place++ {
		if text[place] < '0' || text[place] > '9' {
			return false
		}
	}
	return text != ""
}
