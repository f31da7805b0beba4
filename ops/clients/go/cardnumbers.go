package paywarden

// network is a range of card networks' numbers: the first four digits and the lengths.
type network struct{ first, last, least, most int }

var networks = [...]network{
	{2200, 2204, 16, 19},
	{2221, 2720, 16, 16},
	{3000, 3059, 14, 19},
	{3095, 3095, 14, 19},
	{3400, 3499, 15, 15},
	{3528, 3589, 16, 19},
	{3600, 3699, 14, 19},
	{3700, 3799, 15, 15},
	{3800, 3999, 14, 19},
	{4000, 4999, 13, 19},
	{5000, 5099, 13, 19},
	{5100, 5599, 16, 16},
	{5600, 5899, 13, 19},
	{6000, 6999, 13, 19},
	{8171, 8171, 16, 19},
}

const cardDigitsMin, cardDigitsMax = 13, 19

// isCardNumber returns whether a text of this field is refused as a card number: without spaces and hyphens, 13 to 19
// digits with a right check digit. Other texts than a card_id must also begin as the numbers of a card network do.
func isCardNumber(field, text string) bool {
	if len(text) < cardDigitsMin {
		return false
	}
	var digits [cardDigitsMax]byte
	count := 0
	for place := 0; place < len(text); place++ {
		switch character := text[place]; {
		case character == ' ' || character == '-':
		case character < '0' || character > '9' || count == cardDigitsMax:
			return false
		default:
			digits[count] = character - '0'
			count++
		}
	}
	if count < cardDigitsMin || !passesLuhn(digits[:count]) {
		return false
	}
	if field == "card_id" {
		return true
	}
	begin := int(digits[0])*1000 + int(digits[1])*100 + int(digits[2])*10 + int(digits[3])
	for _, one := range networks {
		if one.first <= begin && begin <= one.last && one.least <= count && count <= one.most {
			return true
		}
	}
	return false
}

func passesLuhn(digits []byte) bool {
	sum := 0
	for place := range digits {
		value := int(digits[len(digits)-1-place])
		if place%2 == 1 {
			value *= 2
			if value > 9 {
				value -= 9
			}
		}
		sum += value
	}
	return sum%10 == 0
}
