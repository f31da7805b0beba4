package paywarden

import (
	"encoding/json"
	"fmt"
	"math"
	"unicode/utf8"
)

// Actions of a decision, the strictest last.
const (
	Approve = "approve"
	Review  = "review"
	Decline = "decline"
)

// Causes of stand-ins.
const (
	Late         = "late"
	Busy         = "busy"
	Unreachable  = "unreachable"
	Broken       = "broken"
	Overloaded   = "overloaded"
	Unavailable  = "unavailable"
	Unauthorized = "unauthorized"
	Failed       = "failed"
	Closed       = "closed"
)

const (
	messageMax = 300
	// wholeMax is the largest whole number that all languages read exactly.
	wholeMax = 1<<53 - 1
)

// Decision is what was decided about a payment.
type Decision struct {
	PaymentID  string `json:"payment_id"`
	Action     string `json:"action"`
	DecisionID string `json:"decision_id"`
	// Score is the probability of fraud; nil for a stand-in.
	Score        *float64 `json:"score"`
	Reasons      []string `json:"reasons"`
	ModelVersion string   `json:"model_version"`
	Flags        []string `json:"flags"`
	// ProfileAgeMS is nil if it is not known.
	ProfileAgeMS *int64 `json:"profile_age_ms"`
	// StandIn is true if this process decided, because the service did not: Reasons begins with stand_in:CAUSE.
	StandIn bool `json:"stand_in"`
}

func rank(action string) int {
	switch action {
	case Approve:
		return 0
	case Review:
		return 1
	case Decline:
		return 2
	}
	return -1
}

// readAnswer returns the decision, or the cause why there is none, or the refusal of the request.
func readAnswer(paymentID string, status int, body []byte) (*Decision, string, *WrongRequest) {
	switch status {
	case 200:
		if decision := decisionOf(paymentID, body); decision != nil {
			return decision, "", nil
		}
	case 400, 409, 413, 415:
		return nil, "", refusalOf(status, body)
	case 401, 403:
		return nil, Unauthorized, nil
	case 429:
		return nil, Overloaded, nil
	case 503:
		return nil, Unavailable, nil
	case 504:
		return nil, Late, nil
	}
	return nil, Failed, nil
}

// decisionOf returns the decision of a body; nil if it is none, or about another payment. Unknown names are skipped.
func decisionOf(paymentID string, body []byte) *Decision {
	found := objectOf(body)
	action, isText := found["action"].(string)
	if found["payment_id"] != paymentID || !isText || rank(action) < 0 {
		return nil
	}
	score, isScore := numberOr(found, "score", 0)
	decisionID, isID := textOr(found, "decision_id")
	version, isVersion := textOr(found, "model_version")
	reasons, areReasons := textsOf(found, "reasons")
	flags, areFlags := textsOf(found, "flags")
	if !isScore || score < 0 || score > 1 || !isID || !isVersion || !areReasons || !areFlags {
		return nil
	}
	decision := &Decision{
		PaymentID: paymentID, Action: action, DecisionID: decisionID, Score: &score,
		Reasons: reasons, ModelVersion: version, Flags: flags,
	}
	if found["profile_age_ms"] != nil {
		age, isNumber := numberOr(found, "profile_age_ms", 0)
		if !isNumber || math.Abs(age) > wholeMax || age != math.Trunc(age) {
			return nil
		}
		whole := int64(age)
		decision.ProfileAgeMS = &whole
	}
	return decision
}

func refusalOf(status int, body []byte) *WrongRequest {
	found, _ := objectOf(body)["error"].(map[string]any)
	code, _ := found["code"].(string)
	field, _ := found["field"].(string)
	message, _ := found["message"].(string)
	if code == "" {
		code = "refused"
	}
	if message == "" {
		message = fmt.Sprintf("was refused with status %d", status)
	}
	return &WrongRequest{Field: cut(field), Code: cut(code), Message: cut(message), Status: status}
}

func cut(text string) string {
	if len(text) <= messageMax {
		return text
	}
	characters := []rune(text)
	return string(characters[:min(messageMax, len(characters))])
}

// objectOf returns the object of a JSON text; an empty one if it is none.
func objectOf(body []byte) map[string]any {
	var found map[string]any
	if !utf8.Valid(body) || json.Unmarshal(body, &found) != nil {
		return nil
	}
	return found
}

func numberOr(found map[string]any, name string, missing float64) (float64, bool) {
	value, isThere := found[name]
	if !isThere {
		return missing, true
	}
	number, isNumber := value.(float64)
	return number, isNumber
}

func textOr(found map[string]any, name string) (string, bool) {
	value, isThere := found[name]
	if !isThere {
		return "", true
	}
	text, isText := value.(string)
	return text, isText
}

func textsOf(found map[string]any, name string) ([]string, bool) {
	value, isThere := found[name]
	if !isThere {
		return []string{}, true
	}
	values, isList := value.([]any)
	if !isList {
		return nil, false
	}
	texts := make([]string, len(values))
	for place, one := range values {
		text, isText := one.(string)
		if !isText {
			return nil, false
		}
		texts[place] = text
	}
	return texts, true
}
