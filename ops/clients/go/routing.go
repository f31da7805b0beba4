package paywarden

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"sort"
)

const (
	routeHeader = "x-paywarden-route"
	routeDigits = 32
)

// RouteOf returns the routing header's value of a card: 32 hexadecimal digits.
func RouteOf(routeKey []byte, cardID string) string {
	hash := hmac.New(sha256.New, routeKey)
	hash.Write([]byte(cardID))
	return hex.EncodeToString(hash.Sum(nil))[:routeDigits]
}

// hostOrder returns the places of the hosts in urls, the one to ask first at the front (rendezvous hashing).
func hostOrder(key string, urls []string) []int {
	order := make([]int, len(urls))
	if len(urls) == 1 {
		return order
	}
	weights := make([]uint64, len(urls))
	for place, url := range urls {
		digest := sha256.Sum256([]byte(key + "\n" + url))
		weights[place] = binary.BigEndian.Uint64(digest[:8])
		order[place] = place
	}
	sort.Slice(order, func(a, b int) bool {
		first, second := order[a], order[b]
		if weights[first] != weights[second] {
			return weights[first] > weights[second]
		}
		return urls[first] > urls[second]
	})
	return order
}
