package paywarden

import (
	"crypto/tls"
	"crypto/x509"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	urlsMax          = 16
	routeKeyBytesMin = 16
)

const tokenBytesMax = 8192

var pathForm = regexp.MustCompile(`\A[A-Za-z0-9._~/%-]*\z`)

// isToken returns whether a text can be a token: printable characters of ASCII without spaces.
func isToken(text string) bool {
	return text != "" && len(text) <= tokenBytesMax && isASCII(text)
}

// Settings are what a client is made with. A value of zero is the default, which SPECIFICATION.md lists, but for URLs.
type Settings struct {
	// URLs are 1 to 16 of http://host:port or https://host:port, with a path before /v1/score if there is one.
	URLs     []string
	Deadline time.Duration
	// Token is sent as Authorization: Bearer. TokenSource is asked for each attempt, in its place.
	Token       string
	TokenSource func() string
	// RouteKey is the key of the routing header, the same for all clients.
	RouteKey []byte
	// Policy decides in the service's place; without one every payment goes to review.
	Policy         *StandInPolicy
	ConnectionsMax int
	Idle           time.Duration
	ConnectTimeout time.Duration
	Resolve        time.Duration
	// QueueMax is how many stand-ins wait to be asked about again; NoQueue turns that off.
	QueueMax  int
	NoQueue   bool
	ShadowMax int
	CardsMax  int
	// CA, Certificate and Key are files in PEM.
	CA, Certificate, Key string
}

// Hooks are functions that the client calls in its own goroutines; they must be quick. A panic of theirs is dropped.
type Hooks struct {
	// OnCall is for metrics. operation is score, shadow or reconcile; outcome is answered, refused, or a cause.
	OnCall func(operation, outcome string, took time.Duration, attempts int)
	// OnReconciled is the end of a stand-in. decision is the service's, or nil; end is answered, refused, expired, full
	// or closed.
	OnReconciled func(standIn, decision *Decision, end string)
	// OnShadow has the caller's own decision beside the service's, or beside nil and the cause.
	OnShadow func(own any, decision *Decision, cause string)
}

// target is a URL, taken apart.
type target struct {
	host, port, path, authority string
	isTLS                       bool
}

// checked returns the settings with the defaults in place of zeros.
func (s Settings) checked() (Settings, []target, *WrongSettings) {
	s.URLs = slices.Clone(s.URLs)
	if len(s.URLs) < 1 || len(s.URLs) > urlsMax {
		return s, nil, wrongSettings("urls", "wanted 1 to %d different ones", urlsMax)
	}
	targets := make([]target, len(s.URLs))
	for place, one := range s.URLs {
		one = strings.TrimRight(one, "/")
		parsed, isRight := targetOf(one)
		if !isRight {
			return s, nil, wrongSettings("urls", "wanted http://host:port or https://host:port, and perhaps a path")
		}
		if slices.Contains(s.URLs[:place], one) {
			return s, nil, wrongSettings("urls", "wanted 1 to %d different ones", urlsMax)
		}
		s.URLs[place], targets[place] = one, parsed
	}
	setDefault(&s.Deadline, 40*time.Millisecond)
	setDefault(&s.Idle, 800*time.Millisecond)
	setDefault(&s.ConnectTimeout, 200*time.Millisecond)
	setDefault(&s.Resolve, 5*time.Second)
	setDefault(&s.ConnectionsMax, 64)
	setDefault(&s.QueueMax, 1000)
	setDefault(&s.ShadowMax, 100)
	setDefault(&s.CardsMax, 100_000)
	if s.NoQueue {
		s.QueueMax = 0
	}
	if s.Policy == nil {
		s.Policy = reviewAll()
	}
	if s.Deadline < time.Millisecond || s.Deadline > deadlineMSMax*time.Millisecond {
		return s, nil, wrongSettings("deadline_ms", "wanted 1 to %d", deadlineMSMax)
	}
	for _, one := range []struct {
		where string
		value int64
	}{
		{"idle_ms", int64(s.Idle)}, {"connect_timeout_ms", int64(s.ConnectTimeout)}, {"resolve_s", int64(s.Resolve)},
		{"connections_max", int64(s.ConnectionsMax)}, {"queue_max", int64(s.QueueMax) + 1},
		{"shadow_max", int64(s.ShadowMax)}, {"cards_max", int64(s.CardsMax)},
	} {
		if one.value < 1 {
			return s, nil, wrongSettings(one.where, "wanted more than 0")
		}
	}
	if s.Token != "" && !isToken(s.Token) {
		return s, nil, wrongSettings("token", "wanted 1 to 8192 printable characters of ASCII without spaces")
	}
	if s.RouteKey != nil && len(s.RouteKey) < routeKeyBytesMin {
		return s, nil, wrongSettings("route_key", "wanted at least %d bytes", routeKeyBytesMin)
	}
	if (s.Certificate == "") != (s.Key == "") {
		return s, nil, wrongSettings("key", "wanted with a certificate, and only with one")
	}
	return s, targets, nil
}

func setDefault[T int | time.Duration](value *T, missing T) {
	if *value == 0 {
		*value = missing
	}
}

func targetOf(text string) (target, bool) {
	parsed, err := url.Parse(text)
	if err != nil || (parsed.Scheme != "http" && parsed.Scheme != "https") || parsed.Hostname() == "" {
		return target{}, false
	}
	if parsed.User != nil || strings.ContainsAny(text, "?#") || !isASCII(parsed.Host) || !pathForm.MatchString(parsed.EscapedPath()) {
		return target{}, false
	}
	port := parsed.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[parsed.Scheme]
	}
	if number, err := strconv.ParseUint(port, 10, 16); err != nil || number == 0 {
		return target{}, false
	}
	return target{
		host: parsed.Hostname(), port: port, path: parsed.EscapedPath() + "/v1/score", authority: parsed.Host,
		isTLS: parsed.Scheme == "https",
	}, true
}

func isASCII(text string) bool {
	return strings.IndexFunc(text, func(character rune) bool { return character <= ' ' || character > '~' }) < 0
}

// tlsConfig returns the configuration of https; nil without such a URL.
func (s *Settings) tlsConfig() (*tls.Config, *WrongSettings) {
	if !slices.ContainsFunc(s.URLs, func(one string) bool { return strings.HasPrefix(one, "https:") }) {
		return nil, nil
	}
	config := &tls.Config{NextProtos: []string{"http/1.1"}, MinVersion: tls.VersionTLS12}
	if s.CA != "" {
		text, err := os.ReadFile(s.CA)
		config.RootCAs = x509.NewCertPool()
		if err != nil || !config.RootCAs.AppendCertsFromPEM(text) {
			return nil, wrongSettings("ca", "wanted a readable file of certificates")
		}
	}
	if s.Certificate != "" {
		pair, err := tls.LoadX509KeyPair(s.Certificate, s.Key)
		if err != nil {
			return nil, wrongSettings("certificate", "wanted readable files of a certificate and its key")
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}
