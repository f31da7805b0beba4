"""The currencies of ISO 4217, each with its number of minor digits: 4999 is 49.99 EUR, 4999 JPY and 4.999 KWD.

Those withdrawn since 2000 are among them, because a history may hold them. Codes without a minor unit are not: an
amount in minor units of gold (XAU) or of no currency (XXX) means nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

_TWO = """
AED AFN ALL AMD ANG AOA ARS AUD AWG AZM AZN BAM BBD BDT BGN BMD BND BOB BOV BRL BSD BTN BWP BYN BZD CAD CDF CHE CHF CHW
CNY COP COU CRC CSD CUC CUP CVE CYP CZK DKK DOP DZD EEK EGP ERN ETB EUR FJD FKP GBP GEL GHC GHS GIP GMD GTQ GYD HKD HNL
HRK HTG HUF IDR ILS INR IRR JMD KES KGS KHR KPW KYD KZT LAK LBP LKR LRD LSL LTL LVL MAD MDL MGA MKD MMK MNT MOP MRO MRU
MTL MUR MVR MWK MXN MXV MYR MZM MZN NAD NGN NIO NOK NPR NZD PAB PEN PGK PHP PKR PLN QAR RON RSD RUB SAR SBD SCR SDD SDG
SEK SGD SHP SIT SKK SLE SLL SOS SRD SSP STD STN SVC SYP SZL THB TJS TMM TMT TOP TRY TTD TWD TZS UAH USD USN UYU UZS VEB
VED VEF VES WST XAD XCD XCG YER ZAR ZMK ZMW ZWD ZWG ZWL ZWN ZWR
"""
_NONE = "BIF BYR CLP DJF GNF ISK JPY KMF KRW MGF PYG ROL RWF TRL UGX UYI VND VUV XAF XOF XPF"
_THREE = "BHD IQD JOD KWD LYD OMR TND"
_FOUR = "CLF UYW"

MINOR_DIGITS: Mapping[str, int] = {
    code: digits for codes, digits in ((_TWO, 2), (_NONE, 0), (_THREE, 3), (_FOUR, 4)) for code in codes.split()
}
"""By code, the digits after the point of an amount in units of the currency."""
