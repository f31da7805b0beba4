package paywarden

import (
	"encoding/json"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

const (
	limitsMax  = 64
	windowSMax = 86_400
	countMax   = 100
	amountMax  = 100_000_000_000
	// Payments kept for a card. With so many within the longest window, every limit by card holds.
	paymentsOfCardMax = 128
)

var (
	nameForm     = regexp.MustCompile(`\A[a-z0-9_-]{1,40}\z`)
	currencyForm = regexp.MustCompile(`\A(?:[A-Z]{3}|\*)\z`)
	mccForm      = regexp.MustCompile(`\A([0-9]{4})(?:-([0-9]{4}))?\z`)
	policyKeys   = []string{"name", "otherwise", "limits"}
	conditions   = []string{"amount_over", "mcc_in", "card_count_over", "card_sum_over"}
	limitKeys    = append([]string{"name", "action", "window_s"}, conditions...)
)

// StandInPolicy decides in the service's place. ParsePolicy makes one.
type StandInPolicy struct {
	name, otherwise string
	limits          []limit
	windowMS        float64
}

// limit is one limit of a policy. A condition that is nil, or a count of -1, asks nothing.
type limit struct {
	name, action        string
	amountOver, sumOver map[string]float64
	mccs                [][2]string
	hasMCC, mayLackMCC  bool
	countOver           float64
	windowMS            float64
}

// reviewAll sends every payment to review.
func reviewAll() *StandInPolicy { return &StandInPolicy{name: "review-all", otherwise: Review} }

// ParsePolicy returns the policy of a JSON text. The error is a *WrongSettings with the path of what is wrong.
func ParsePolicy(text []byte) (*StandInPolicy, error) {
	var found any
	if !utf8.Valid(text) || json.Unmarshal(text, &found) != nil {
		return nil, wrongSettings("", "the policy is not JSON")
	}
	policy, wrong := policyOf(found)
	if wrong != nil {
		return nil, wrong
	}
	return policy, nil
}

func policyOf(value any) (*StandInPolicy, *WrongSettings) {
	found, isObject := value.(map[string]any)
	if !isObject {
		return nil, wrongSettings("", "wanted an object")
	}
	if wrong := requireKnown(found, policyKeys, ""); wrong != nil {
		return nil, wrong
	}
	name, wrong := nameOf(found, "")
	if wrong != nil {
		return nil, wrong
	}
	otherwise, isText := found["otherwise"].(string)
	if !isText || rank(otherwise) < 0 {
		return nil, wrongSettings("otherwise", "wanted approve, review or decline")
	}
	policy := &StandInPolicy{name: name, otherwise: otherwise}
	listed, isThere := found["limits"]
	if !isThere {
		return policy, nil
	}
	limits, isList := listed.([]any)
	if !isList || len(limits) > limitsMax {
		return nil, wrongSettings("limits", "wanted a list of at most %d", limitsMax)
	}
	for place, one := range limits {
		at := fmt.Sprintf("limits[%d]", place)
		parsed, wrong := limitOf(one, at)
		if wrong != nil {
			return nil, wrong
		}
		policy.limits = append(policy.limits, *parsed)
		policy.windowMS = max(policy.windowMS, parsed.windowMS)
	}
	for place, one := range policy.limits {
		if slices.ContainsFunc(policy.limits[:place], func(other limit) bool { return other.name == one.name }) {
			return nil, wrongSettings(fmt.Sprintf("limits[%d].name", place), "wanted a name that no other limit has")
		}
	}
	return policy, nil
}

func limitOf(value any, at string) (*limit, *WrongSettings) {
	found, isObject := value.(map[string]any)
	if !isObject {
		return nil, wrongSettings(at, "wanted an object")
	}
	if wrong := requireKnown(found, limitKeys, at); wrong != nil {
		return nil, wrong
	}
	name, wrong := nameOf(found, at)
	if wrong != nil {
		return nil, wrong
	}
	action, isText := found["action"].(string)
	if !isText || (action != Review && action != Decline) {
		return nil, wrongSettings(at+".action", "wanted review or decline")
	}
	has := func(key string) bool { _, isThere := found[key]; return isThere }
	if !slices.ContainsFunc(conditions, has) {
		return nil, wrongSettings(at, "wanted a condition: one of %s", strings.Join(conditions, ", "))
	}
	one := &limit{name: name, action: action, countOver: -1, hasMCC: has("mcc_in")}
	if one.hasMCC {
		if wrong := one.setMCCs(found["mcc_in"], at+".mcc_in"); wrong != nil {
			return nil, wrong
		}
	}
	byCard := has("card_count_over") || has("card_sum_over")
	if byCard != has("window_s") {
		return nil, wrongSettings(at+".window_s", "wanted with card_count_over or card_sum_over, and only there")
	}
	if has("amount_over") {
		if one.amountOver, wrong = amountsOf(found["amount_over"], at+".amount_over"); wrong != nil {
			return nil, wrong
		}
	}
	if has("card_count_over") {
		if one.countOver, wrong = whole(found["card_count_over"], at+".card_count_over", 0, countMax); wrong != nil {
			return nil, wrong
		}
	}
	if has("card_sum_over") {
		if one.sumOver, wrong = amountsOf(found["card_sum_over"], at+".card_sum_over"); wrong != nil {
			return nil, wrong
		}
	}
	if byCard {
		windowS, wrong := whole(found["window_s"], at+".window_s", 1, windowSMax)
		if wrong != nil {
			return nil, wrong
		}
		one.windowMS = 1000 * windowS
	}
	return one, nil
}

func (l *limit) setMCCs(value any, at string) *WrongSettings {
	found, isList := value.([]any)
	if !isList || len(found) == 0 {
		return wrongSettings(at, `wanted a list such as ["7995", "7800-7802", "missing"]`)
	}
	for place, one := range found {
		text, isText := one.(string)
		if isText && text == "missing" {
			l.mayLackMCC = true
			continue
		}
		match := mccForm.FindStringSubmatch(text)
		if !isText || match == nil || (match[2] != "" && match[2] < match[1]) {
			return wrongSettings(fmt.Sprintf("%s[%d]", at, place), `wanted four digits, a range of them, or "missing"`)
		}
		if match[2] == "" {
			match[2] = match[1]
		}
		l.mccs = append(l.mccs, [2]string{match[1], match[2]})
	}
	return nil
}

func requireKnown(found map[string]any, names []string, at string) *WrongSettings {
	unknown := make([]string, 0)
	for name := range found {
		if !slices.Contains(names, name) {
			unknown = append(unknown, name)
		}
	}
	if len(unknown) == 0 {
		return nil
	}
	return wrongSettings(pathOf(at, slices.Min(unknown)), "is unknown; wanted one of %s", strings.Join(names, ", "))
}

func pathOf(at, name string) string {
	if at == "" {
		return name
	}
	return at + "." + name
}

func nameOf(found map[string]any, at string) (string, *WrongSettings) {
	name, isText := found["name"].(string)
	if !isText || !nameForm.MatchString(name) {
		return "", wrongSettings(pathOf(at, "name"), "wanted 1 to 40 of a to z, 0 to 9, _ and -")
	}
	return name, nil
}

func whole(value any, at string, least, most float64) (float64, *WrongSettings) {
	number, isNumber := value.(float64)
	if !isNumber || number < least || number > most || number != math.Floor(number) {
		return 0, wrongSettings(at, "wanted a whole number from %.0f to %.0f", least, most)
	}
	return number, nil
}

func amountsOf(value any, at string) (map[string]float64, *WrongSettings) {
	found, isObject := value.(map[string]any)
	if !isObject || len(found) == 0 {
		return nil, wrongSettings(at, `wanted amounts by currency, such as {"EUR": 20000}`)
	}
	currencies := make([]string, 0, len(found))
	for currency := range found {
		currencies = append(currencies, currency)
	}
	slices.Sort(currencies)
	amounts := make(map[string]float64, len(found))
	for _, currency := range currencies {
		if !currencyForm.MatchString(currency) {
			return nil, wrongSettings(at+"."+currency, `wanted three capital letters, or "*"`)
		}
		amount, wrong := whole(found[currency], at+"."+currency, 0, amountMax)
		if wrong != nil {
			return nil, wrong
		}
		amounts[currency] = amount
	}
	return amounts, nil
}

// counted is a payment of a card that this process approved or sent to review.
type counted struct {
	atMS      float64
	paymentID string
	amount    int64
	currency  string
}

// cardCounts are the payments of a card, linked in the order of each card's newest payment.
type cardCounts struct {
	cardID         string
	payments       []counted
	earlier, later *cardCounts
}

// standIn decides by a policy, and counts by card. The client holds a lock.
type standIn struct {
	policy   *StandInPolicy
	cardsMax int
	cards    map[string]*cardCounts
	// oldest and newest are the ends of the list of cards.
	oldest, newest *cardCounts
}

func newStandIn(policy *StandInPolicy, cardsMax int) *standIn {
	return &standIn{policy: policy, cardsMax: cardsMax, cards: map[string]*cardCounts{}}
}

// decide returns the decision. nowMS is of a clock that never goes back.
func (s *standIn) decide(payment *Payment, cause string, nowMS float64) *Decision {
	policy := s.policy
	var earlier []counted
	if policy.windowMS > 0 {
		earlier = s.earlierOf(payment, nowMS)
	}
	action := policy.otherwise
	var holding []*limit
	for place := range policy.limits {
		if one := &policy.limits[place]; one.holds(payment, earlier, nowMS) {
			if len(holding) == 0 || rank(one.action) > rank(action) {
				action = one.action
			}
			holding = append(holding, one)
		}
	}
	reasons := []string{"stand_in:" + cause}
	for _, one := range holding {
		if one.action == action {
			reasons = append(reasons, "limit:"+one.name)
		}
	}
	if action != Decline && policy.windowMS > 0 {
		s.note(payment, nowMS)
	}
	return &Decision{
		PaymentID: payment.PaymentID, Action: action, Reasons: reasons, Flags: []string{"stand_in"}, StandIn: true,
	}
}

func (s *standIn) earlierOf(payment *Payment, nowMS float64) []counted {
	card := s.cards[payment.CardID]
	if card == nil {
		return nil
	}
	gone := 0
	for gone < len(card.payments) && nowMS-card.payments[gone].atMS >= s.policy.windowMS {
		gone++
	}
	card.payments = slices.Delete(card.payments, 0, gone)
	// The same payment, asked again, counts once.
	if !card.has(payment.PaymentID) {
		return card.payments
	}
	others := make([]counted, 0, len(card.payments))
	for _, one := range card.payments {
		if one.paymentID != payment.PaymentID {
			others = append(others, one)
		}
	}
	return others
}

func (c *cardCounts) has(paymentID string) bool {
	return slices.ContainsFunc(c.payments, func(one counted) bool { return one.paymentID == paymentID })
}

func (s *standIn) note(payment *Payment, nowMS float64) {
	card := s.cards[payment.CardID]
	if card != nil {
		s.unlink(card)
	} else {
		card = &cardCounts{cardID: payment.CardID}
		if len(s.cards) >= s.cardsMax {
			delete(s.cards, s.oldest.cardID)
			s.unlink(s.oldest)
		}
		s.cards[payment.CardID] = card
	}
	s.link(card)
	if !card.has(payment.PaymentID) {
		if len(card.payments) == paymentsOfCardMax {
			card.payments = slices.Delete(card.payments, 0, 1)
		}
		card.payments = append(
			card.payments, counted{nowMS, payment.PaymentID, payment.AmountMinor, payment.Currency},
		)
	}
}

func (s *standIn) unlink(card *cardCounts) {
	if card.earlier != nil {
		card.earlier.later = card.later
	} else {
		s.oldest = card.later
	}
	if card.later != nil {
		card.later.earlier = card.earlier
	} else {
		s.newest = card.earlier
	}
	card.earlier, card.later = nil, nil
}

func (s *standIn) link(card *cardCounts) {
	card.earlier = s.newest
	if s.newest != nil {
		s.newest.later = card
	} else {
		s.oldest = card
	}
	s.newest = card
}

func (l *limit) holds(payment *Payment, earlier []counted, nowMS float64) bool {
	if l.amountOver != nil && !isOver(float64(payment.AmountMinor), payment.Currency, l.amountOver) {
		return false
	}
	if l.hasMCC && !l.hasMCCOf(payment.MCC) {
		return false
	}
	if l.windowMS == 0 || len(earlier) >= paymentsOfCardMax {
		return true
	}
	count, sum := 1, payment.AmountMinor
	for _, one := range earlier {
		if nowMS-one.atMS < l.windowMS {
			count++
			if one.currency == payment.Currency {
				sum += one.amount
			}
		}
	}
	if l.countOver >= 0 && float64(count) <= l.countOver {
		return false
	}
	return l.sumOver == nil || isOver(float64(sum), payment.Currency, l.sumOver)
}

func (l *limit) hasMCCOf(mcc string) bool {
	if mcc == "" {
		return l.mayLackMCC
	}
	return slices.ContainsFunc(l.mccs, func(pair [2]string) bool { return pair[0] <= mcc && mcc <= pair[1] })
}

// isOver returns whether an amount is over its currency's limit, or that of "*". A currency without one is over.
func isOver(amount float64, currency string, largest map[string]float64) bool {
	most, isThere := largest[currency]
	if !isThere {
		most, isThere = largest["*"]
	}
	return !isThere || amount > most
}
