package paywarden

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"sync"
	"testing"
	"time"
)

// patient is a deadline that no test reaches.
const patient = 10 * time.Minute

func aPayment(id string) *Payment {
	return &Payment{
		PaymentID: id, EventTimeMS: 1_700_000_000_000, CardID: "card-1", MerchantID: "m", AmountMinor: 1, Currency: "EUR",
	}
}

func newClient(t *testing.T, host *httptest.Server, hooks Hooks) *Client {
	t.Helper()
	client, err := New(Settings{URLs: []string{host.URL}, Deadline: patient}, hooks)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

// approving is a host that approves each payment by its own id.
func approving(t *testing.T) *httptest.Server {
	host := httptest.NewServer(http.HandlerFunc(func(writer http.ResponseWriter, request *http.Request) {
		body, _ := io.ReadAll(request.Body)
		fmt.Fprintf(writer, `{"payment_id": %q, "action": "approve"}`, objectOf(body)["payment_id"])
	}))
	t.Cleanup(host.Close)
	return host
}

func TestAContextThatEndsEndsTheCall(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	host := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, request *http.Request) {
		cancel()
		// Until the client closes the connection.
		io.Copy(io.Discard, request.Body)
		<-request.Context().Done()
	}))
	defer host.Close()
	decision, err := newClient(t, host, Hooks{}).Score(ctx, aPayment("p-1"))
	if err != nil || !decision.StandIn || decision.Reasons[0] != "stand_in:late" {
		t.Errorf("got %v, %v", decision, err)
	}
}

func TestAHookThatPanicsChangesNoAnswer(t *testing.T) {
	hooks := Hooks{OnCall: func(string, string, time.Duration, int) { panic("a fault of the caller's") }}
	decision, err := newClient(t, approving(t), hooks).Score(context.Background(), aPayment("p-1"))
	if err != nil || decision.Action != Approve || decision.StandIn {
		t.Errorf("got %v, %v", decision, err)
	}
}

func TestCallsFromManyGoroutinesEachGetTheirOwnAnswer(t *testing.T) {
	client := newClient(t, approving(t), Hooks{})
	var calls sync.WaitGroup
	for worker := range 16 {
		calls.Add(1)
		go func() {
			defer calls.Done()
			for number := range 20 {
				id := fmt.Sprintf("p-%d-%d", worker, number)
				decision, err := client.Score(context.Background(), aPayment(id))
				if err != nil || decision.StandIn || decision.PaymentID != id {
					t.Errorf("%s got %v, %v", id, decision, err)
				}
			}
		}()
	}
	calls.Wait()
}

func TestACallWhileTheClientClosesIsAnsweredOrAStandIn(t *testing.T) {
	client := newClient(t, approving(t), Hooks{})
	var calls sync.WaitGroup
	for worker := range 8 {
		calls.Add(1)
		go func() {
			defer calls.Done()
			for number := range 20 {
				if worker == 0 && number == 10 {
					client.Close()
				}
				id := fmt.Sprintf("p-%d-%d", worker, number)
				decision, err := client.Score(context.Background(), aPayment(id))
				if err != nil || decision.PaymentID != id {
					t.Errorf("%s got %v, %v", id, decision, err)
				}
				Shadow(client, aPayment(id), Approve)
			}
		}()
	}
	calls.Wait()
	decision, _ := client.Score(context.Background(), aPayment("p-after"))
	if decision.Reasons[0] != "stand_in:closed" || client.WaitingCount() != 0 {
		t.Errorf("got %v, and %d wait", decision, client.WaitingCount())
	}
}

func TestAnAnswerIsTheSameHoweverItArrives(t *testing.T) {
	for _, one := range []struct {
		raw   string
		body  string
		keeps bool
	}{
		{"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "hello", true},
		{"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", "", true},
		{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;a=b\r\nhe\r\n3\r\nllo\r\n0\r\nX: y\r\n\r\n", "hello", true},
		{"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", "hello", false},
		{"HTTP/1.1 200 OK\r\nConnection: x, Close\r\nContent-Length: 5\r\n\r\nhello", "hello", false},
	} {
		for step := 1; step <= len(one.raw); step++ {
			reader := &answerReader{}
			isWhole := false
			for at := 0; at < len(one.raw) && !isWhole; at += step {
				var err error
				isWhole, err = reader.feed([]byte(one.raw[at:min(at+step, len(one.raw))]))
				if err != nil {
					t.Fatalf("%q in steps of %d: %v", one.raw, step, err)
				}
			}
			if !isWhole || string(reader.body) != one.body || reader.keeps != one.keeps {
				t.Errorf("%q in steps of %d: got %q, keeps %v", one.raw, step, reader.body, reader.keeps)
			}
		}
	}
}

func TestWhatIsNoAnswerIsRefused(t *testing.T) {
	for _, raw := range []string{
		"+OK ready\r\n\r\n",
		"HTTP/2 200\r\n\r\n",
		"HTTP/1.1 101 Switching Protocols\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n",
		"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhello\r\n",
	} {
		if isWhole, err := (&answerReader{}).feed([]byte(raw)); err == nil {
			t.Errorf("%q was taken: whole %v", raw, isWhole)
		}
	}
}

func TestAnAddressThatFailedIsLeftOutForASecondUnlessAllHave(t *testing.T) {
	one, other := netip.MustParseAddrPort("127.0.0.1:1"), netip.MustParseAddrPort("127.0.0.2:1")
	begin := time.Now()
	at := func(seconds float64) time.Time { return begin.Add(time.Duration(seconds * float64(time.Second))) }
	var known addresses
	known.set([]netip.AddrPort{one, other})
	taken := func(seconds float64) map[netip.AddrPort]bool {
		found := map[netip.AddrPort]bool{}
		for range 4 {
			found[known.take(at(seconds))] = true
		}
		return found
	}
	both := map[netip.AddrPort]bool{one: true, other: true}
	equal(t, taken(0), both)
	known.noteFailed(one, at(10))
	equal(t, taken(10.5), map[netip.AddrPort]bool{other: true})
	known.noteFailed(other, at(10.5))
	equal(t, taken(10.6), both)
	equal(t, taken(11.1), map[netip.AddrPort]bool{one: true})
	equal(t, taken(12), both)
}
